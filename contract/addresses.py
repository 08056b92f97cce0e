"""Addresses of servers and of MLflow's stores: pages, ports of this machine, and why a server does not answer."""

import json
import os
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from contract.environment import MLFLOW_PAGES, TRACKING_URI
from contract.errors import FlowersError

LOCAL_MLFLOW = "http://127.0.0.1:5000"
"""Address at which `make mlflow` serves the runs of this checkout."""

_MAX_REASON_CHARACTERS = 300

_REFUSES_LOGIN = "asks for a login or refuses the one that it got"
_REFUSES_NAME = (
    "refuses the login, or the name in this address, which MLFLOW_SERVER_ALLOWED_HOSTS of its machine may lack"
)
_OTHER_SERVER = "answers, but not as {kind} does: it is another server, its address is incomplete, or it has a fault"

_REFUSALS = {401: _REFUSES_LOGIN, 403: _REFUSES_NAME, 407: _REFUSES_LOGIN}
_FAILURES: dict[tuple[type[Exception], ...], str] = {
    (json.JSONDecodeError, UnicodeDecodeError): _OTHER_SERVER,
    (ssl.SSLCertVerificationError,): "has a certificate that is not trusted here ({cause.verify_message})",
    (ssl.SSLError,): "does not speak TLS ({cause.reason}), so its address begins with http://",
    (socket.gaierror,): "does not answer: there is no host of that name",
    (ConnectionRefusedError,): "does not answer: nothing listens there",
    (TimeoutError,): "does not answer in time",
}
"""Words for what the system says of a request; the first that fits."""

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}

_PLACE = re.compile(r"((?P<scheme>sqlite(\+\w+)?:///(?!:memory:|file:)|file:(?!//))|(?!.*:))(?P<path>.+)")
"""Address of MLflow that may be relative to a folder; every other one has a scheme, and means the same anywhere."""

_BARE_NAMES = frozenset({"databricks", "databricks-uc", "uc"})
"""Addresses that look like a folder, and are none."""


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
    if not host:  # the system would take it for every address of this machine
        raise FlowersError("the host to listen on is empty: name an address, such as 127.0.0.1, or 0.0.0.0 for all")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FlowersError(f"cannot listen on {host} port {port}: {reason}; {advice}") from None


def make_absolute(address: str, folder: Path) -> str:
    """Return an address of MLflow in which a relative place, of a database or a folder, is one below `folder`."""
    place = _PLACE.fullmatch(address)
    if place is None or address in _BARE_NAMES:
        return address
    scheme, root = place["scheme"] or "", str(folder)
    if scheme == "file:":
        root = quote(root)
    elif scheme and (quoted := root.replace("%", "%25").replace("?", "%3F")) != root:
        # Spelt so, MLflow leaves the folder to SQLAlchemy; otherwise it makes one of the quoted name beside it.
        scheme, root = "sqlite+pysqlite:///", quoted
    return scheme + str(PurePosixPath(root, place["path"]))


def describe_failure(error: BaseException, kind: str) -> str:
    """Return in words what a server did instead of answering a request, whichever library sent it.

    Args:
        error: as the library raised it; what the system or the server said lies below it.
        kind: name of the program that should answer, such as "MLflow".
    """
    causes = list(_list_causes(error))
    for cause in causes:
        if status := _http_status(cause):
            words = _REFUSALS.get(status, _OTHER_SERVER)
            return f"{words} (HTTP {status})".format(kind=kind)
    for cause in reversed(causes):
        for types, words in _FAILURES.items():
            if isinstance(cause, types):
                return words.format(kind=kind, cause=cause)
    reason = str(causes[-1]) or type(causes[-1]).__name__
    return f"cannot be used: {' '.join(reason.split())[:_MAX_REASON_CHARACTERS].rstrip('.')}"


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, then what it was raised from, down to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _http_status(error: BaseException) -> int | None:
    """Return the status that the server answered with, where an error of httpx or requests holds it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and status >= 400 else None
