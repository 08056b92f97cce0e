"""Serve the champion over HTTP, by MLflow's own server; docs/serving.md describes the requests."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from contract.addresses import require_free_port, server_address
from contract.environment import TRACKING_URI
from contract.errors import FlowersError
from contract.params import read_params
from tracking.connection import tracking_uri
from tracking.registry import CHAMPION, Registry


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
    require_free_port(host, port, "name another by --port, `make serve SERVE_PORT=…`")
    if (champion := Registry(name).champion()) is None:
        raise FlowersError(
            f"MLflow at {tracking_uri()} has no {CHAMPION} of {name}: `make run` registers a model, "
            "`flowers promote VERSION` makes a version champion"
        )
    address = f"{server_address(host, port)}/invocations"
    print(f"serve: {name} version {champion.number} at {address}; Ctrl-C ends it", flush=True)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    # The version, not the alias, which may move before the server reads it.
    command += ["--model-uri", f"models:/{name}/{champion.number}", "--timeout", str(timeout)]
    command += ["--host", host, "--port", str(port)]
    # MLflow's server starts programs of this environment, which need not be on the PATH.
    path = os.pathsep.join(filter(None, [str(Path(sys.executable).parent), os.environ.get("PATH")]))
    os.execve(sys.executable, command, os.environ | {"PATH": path, TRACKING_URI: tracking_uri()})
