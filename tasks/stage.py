"""Run one DVC stage in a child process group: its output goes to the Prefect log, and its end comes with the task's."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

GRACE_SECONDS = 60.0
"""How long a stage may take to save its work when it is told to stop.

A Prefect worker kills the flow of a cancelled run after half of it. The stage, in a group of its own, is then not
killed: it has been told to stop, and goes when its work is saved."""

LOGGED_BAR_SECONDS = 30.0

_KEPT_LINES = 8

# What DVC advises after every stage; the README says it once.
_HINTS = ("To track the changes with git", "git add", "To enable auto staging", "dvc config", "Use `dvc push`")


class StageFailedError(Exception):
    """DVC could not bring a stage up to date; the message holds the last lines of its output."""


def run_stage(name: str) -> None:
    """Bring stage `name` up to date by `dvc repro --single-item`.

    A child process, so that a cancelled or crashed task takes the stage and its GPU memory with it; a group of its own,
    so that the terminal's Ctrl-C reaches it only through here.

    Raises:
        StageFailedError: the stage failed.
    """
    logger = get_run_logger()
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--single-item", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        close_fds=False,  # a lock made inheritable, as a workspace's is, lasts as long as the stage
        env=stage_environment(),
    )
    last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
    try:
        assert process.stdout is not None
        for line in streamed_lines(process.stdout):
            if not line.strip().startswith(_HINTS):
                last_lines.append(line)
                logger.info(line)
        exit_status = process.wait()
    except BaseException:
        for line in end_group(process):
            logger.info(line)
        raise
    if exit_status != 0:
        raise StageFailedError("\n".join([f"stage {name} failed:", *last_lines]))


def stage_environment() -> dict[str, str]:
    """The environment of the child: this interpreter first, unbuffered, and whom to watch and name."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment["PYTHONUNBUFFERED"] = "1"
    environment["DVC_NO_ANALYTICS"] = "true"
    environment["DDPM_WATCH_PID"] = str(os.getpid())
    environment["DDPM_PREFECT_FLOW_RUN"] = f"{flow_run.name} ({flow_run.id})"
    return environment


def streamed_lines(output: IO[bytes]) -> Iterator[str]:
    """Whole lines, as they come; the states of a progress bar between them go to the terminal, where there is one."""
    pending = b""
    show = _TerminalBar() if sys.stderr.isatty() else _LoggedBar()
    while chunk := os.read(output.fileno(), 65536):
        *parts, pending = (pending + chunk).replace(b"\r\n", b"\n").splitlines(keepends=True)
        if pending.endswith(b"\n"):  # but not \r, which may be half of \r\n
            parts.append(pending)
            pending = b""
        for part in parts:
            text = part.decode(errors="replace").rstrip()
            if part.endswith(b"\r"):
                yield from show(text)
            elif text:
                yield text
    if text := pending.decode(errors="replace").strip():
        yield text


def end_group(process: subprocess.Popen[bytes], grace_seconds: float = GRACE_SECONDS) -> list[str]:
    """Interrupt every process of the child's group; kill what is still there after the grace period.

    Returns:
        What they still said: where their work is kept.
    """
    # SIGINT, as Ctrl-C would: the stage saves its work, and DVC outlives it to leave its locks in order.
    _signal_group(process, signal.SIGINT)
    said = b""
    with contextlib.suppress(subprocess.TimeoutExpired):
        said = process.communicate(timeout=grace_seconds)[0] or b""
    _signal_group(process, signal.SIGKILL)
    process.wait()
    texts = [line.rpartition("\r")[2].strip() for line in said.decode(errors="replace").split("\n")]
    return [text for text in texts if text]


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class _TerminalBar:
    """Moves the bar on the terminal; nothing of it goes to the log."""

    def __call__(self, text: str) -> list[str]:
        if text:
            sys.stderr.write(f"\r{text}")
            sys.stderr.flush()
        return []


class _LoggedBar:
    """Where no terminal is, the log takes a state of the bar now and then."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, text: str) -> list[str]:
        if not text or time.monotonic() - self._last < LOGGED_BAR_SECONDS:
            return []
        self._last = time.monotonic()
        return [text]


class _WithoutTraceback(logging.Filter):
    """A failed stage has said what is wrong; where Prefect caught it helps nobody."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info, tuple) and isinstance(record.exc_info[1], StageFailedError):
            record.exc_info = None
        return True


for _name in ("prefect.task_runs", "prefect.flow_runs", "prefect.task_engine", "prefect.flow_engine"):
    logging.getLogger(_name).addFilter(_WithoutTraceback())
