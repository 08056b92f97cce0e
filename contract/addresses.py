"""Addresses of servers: MLflow's pages, and those that listen on this machine."""

import os
import socket

from contract.environment import MLFLOW_PAGES, TRACKING_URI
from contract.errors import FlowersError

LOCAL_MLFLOW = "http://127.0.0.1:5000"
"""Address at which `make mlflow` serves the runs of this checkout."""

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def tracking_server() -> str | None:
    """Return the address of the MLflow server that records the runs; None where they go to a database file."""
    address = os.environ.get(TRACKING_URI, "")
    return address if address.startswith("http") else None


def mlflow_address() -> str:
    """Return the address of MLflow's pages: on the server, or where `make mlflow` would serve the local runs."""
    return (os.environ.get(MLFLOW_PAGES) or tracking_server() or LOCAL_MLFLOW).rstrip("/")


def server_address(host: str, port: int) -> str:
    """Return the address at which programs on this machine reach a server that listens on `host`."""
    reachable = _EVERY_ADDRESS.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def require_free_port(host: str, port: int, advice: str) -> None:
    """Check that a server can listen on a port, by listening there for a moment.

    Args:
        host: address to listen on.
        port: number of the port.
        advice: what to do where it cannot be used, for the error.

    Raises:
        FlowersError: another program listens there, or the address is not one of this machine.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FlowersError(f"cannot listen on {host} port {port}: {reason}; {advice}") from None
