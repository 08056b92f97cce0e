"""Real servers on free ports: started, waited for, and ended with their children."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

from tests.seams.checkout import wait_until

web = requests.Session()
web.trust_env = False  # a proxy has no way to this machine's own ports
_GRACE_SECONDS = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, which ends with the block."""
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
    """Until `make up`, or what it calls, says that everything is there."""

    def is_up() -> bool:
        assert process.poll() is None, f"{' '.join(process.args)} ended:\n{log.read_text()}"
        return "Ctrl-C stops everything." in log.read_text()

    wait_until(is_up, "the service", seconds=320)
