"""Serve the champion over HTTP, by MLflow's own server; docs/serving.md describes the requests."""

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from contract.environment import TRACKING_URI
from contract.errors import FlowersError
from contract.params import read_params
from tracking.connection import tracking_uri
from tracking.promotion import CHAMPION
from tracking.registry import Registry


class ServeError(FlowersError):
    """The server cannot be started."""


def serve(host: str, port: int, model: str | None, timeout: int) -> NoReturn:
    """Serve the champion; MLflow's server takes the place of this process.

    Args:
        host: address to listen on; 0.0.0.0 serves the whole network.
        port: number of the port.
        model: name of the registered model; None takes register.model_name of params.yaml.
        timeout: seconds that a request may take.

    Raises:
        FlowersError: there is no champion, or the port is in use.
    """
    name = model or read_params().register.model_name
    require_free(host, port)
    number = find_champion(name)
    print(f"serve: {name} version {number} at http://{host}:{port}/invocations; Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    # The version, not the alias, which may move before the server reads it.
    command += ["--model-uri", f"models:/{name}/{number}", "--timeout", str(timeout)]
    command += ["--host", host, "--port", str(port)]
    os.execve(sys.executable, command, server_environment())


def require_free(host: str, port: int) -> None:
    """Check that the port can be listened on.

    Raises:
        ServeError: another program listens there, or the address is not one of this machine.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ServeError(
                f"{host}:{port} cannot be listened on: {error}; name another by --port, `make serve SERVE_PORT=…`"
            ) from None


def find_champion(name: str) -> str:
    """Return the number of the version to serve.

    Raises:
        ServeError: there is none.
    """
    champion = Registry(name).champion()
    if champion is None:
        raise ServeError(
            f"MLflow at {tracking_uri()} has no {CHAMPION} of {name}: `make run` registers a model, "
            "`flowers promote VERSION` makes a version champion"
        )
    return champion.number


def server_environment() -> dict[str, str]:
    """Return this process's environment, with MLflow's address, and its programs on the PATH."""
    commands = str(Path(sys.executable).parent)
    path = os.pathsep.join([commands, *filter(None, [os.environ.get("PATH")])])
    return os.environ | {"PATH": path, TRACKING_URI: tracking_uri()}
