"""Real servers on free ports: started, waited for, and ended with their children."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from tests.seams.checkout import wait_until

web = requests.Session()
web.trust_env = False  # a proxy has no way to this machine's own ports
# Prefect says 503 while its database is busy; its own client tries again, too.
web.mount("http://", HTTPAdapter(max_retries=Retry(
    total=None, connect=0, read=0, other=0, status=8, status_forcelist=[503], allowed_methods=None, backoff_factor=0.5,
    raise_on_status=False,
)))  # fmt: skip
_GRACE_SECONDS = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """Start a process in its own group; end the group with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)


def wait_until_up(process: subprocess.Popen, log: Path) -> None:
    """Wait until `make up`, or the command behind it, says that everything is up."""

    def is_up() -> bool:
        assert process.poll() is None, f"{' '.join(process.args)} ended:\n{log.read_text()}"
        return "Ctrl-C stops everything." in log.read_text()

    wait_until(is_up, "the service", seconds=280)


def wait_for_server(process: subprocess.Popen, address: str, log: Path) -> None:
    """Wait until the address answers 200."""

    def answers() -> bool:
        assert process.poll() is None, f"{' '.join(process.args)} ended:\n{log.read_text()}"
        with suppress(requests.RequestException):
            return web.get(address, timeout=5).ok
        return False

    wait_until(answers, address, seconds=120)


@contextmanager
def mlflow_server(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Start an MLflow server that keeps everything in the new folder `folder`; yield its address."""
    folder.mkdir()
    port, log = free_port(), folder / "mlflow.log"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "./artifacts",
    ]  # fmt: skip
    # A client's address would make the server a client of itself.
    at_home = {name: value for name, value in environment.items() if name != "MLFLOW_TRACKING_URI"}
    with running(command, folder, at_home, log) as server:
        wait_for_server(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"
