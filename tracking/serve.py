"""Serve the champion over HTTP: `make serve`; docs/serving.md says what to send.

The server is MLflow's own, which `mlflow models serve` starts too; this sees to it that it can start, and says where.
"""

import argparse
import os
import socket
import sys
from pathlib import Path

from contract.errors import StageError
from contract.params import read_params
from tracking.promotion import CHAMPION
from tracking.registry import Registry
from tracking.runs import tracking_uri


def main() -> None:
    """The command; the server takes the place of this process."""
    parser = argparse.ArgumentParser(prog="python -m tracking.serve", description="Serve the champion over HTTP.")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the whole network (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5001, help="(default: %(default)s)")
    parser.add_argument("--model", help="the registered model; by default register.model_name of params.yaml")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for a request (default: %(default)s)")
    asked = parser.parse_args()
    try:
        name = asked.model or read_params().register.model_name
        require_free(asked.host, asked.port)
        number = champion_of(name)
    except StageError as error:
        sys.exit(f"serve: {error}")
    print(f"serve: {name} version {number} at http://{asked.host}:{asked.port}/invocations; Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    # The version, not the alias: what is served is what was said.
    command += ["--model-uri", f"models:/{name}/{number}", "--timeout", str(asked.timeout)]
    command += ["--host", asked.host, "--port", str(asked.port)]
    os.execve(sys.executable, command, server_environment())


def require_free(host: str, port: int) -> None:
    """Refuse a port that something else listens on.

    Raises:
        StageError: something does, or the address is no address of this machine.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise StageError(
                f"{host}:{port} cannot be listened on: {error}; name another by --port, `make serve SERVE_PORT=…`"
            ) from None


def champion_of(name: str) -> str:
    """The number of the version to serve.

    Raises:
        StageError: there is none.
    """
    champion = Registry(name).champion()
    if champion is None:
        raise StageError(
            f"MLflow at {tracking_uri()} has no {CHAMPION} of {name}: `make run` registers a model, "
            "`python -m flows.promote VERSION` makes a version champion"
        )
    return champion.number


def server_environment() -> dict[str, str]:
    """That of this process, with the tracking address; MLflow looks for its server's program on the PATH."""
    commands = str(Path(sys.executable).parent)
    path = os.pathsep.join([commands, *filter(None, [os.environ.get("PATH")])])
    return os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": tracking_uri()}


if __name__ == "__main__":
    main()
