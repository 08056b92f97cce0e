"""Run one DVC stage in a child process group: its events and lines go to the Prefect log, and it ends with the task."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import httpx
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from contract.environment import EVENTS, PREFECT_RUN, PREFECT_RUN_ID, SWEEP, WATCH_PID
from contract.errors import FlowersError, StageError
from contract.events import Failed, Message, Progress, parse_event
from tasks.run_page import Log, StagePage, show_stage

GRACE_SECONDS = 60.0
"""Time that a stage has to save its work when it is told to stop.

A Prefect worker kills the flow of a cancelled run after half of it. The stage, in a group of its own, is then not
killed: it has been told to stop, and ends when its work is saved."""

POLL_SECONDS = 0.2

LOGGED_BAR_SECONDS = 30.0
"""Time between two log lines of a progress bar, where no terminal shows it."""

SWEEP_TAG = "sweep:"
"""Beginning of the tag of a flow run that belongs to a sweep; the sweep's name follows."""

# DVC's advice after every stage; the README says it once.
_ADVICE = ("To track the changes with git", "git add", "To enable auto staging", "dvc config", "Use `dvc push`")

_NUM_LAST_LINES = 8


class StageFailedError(StageError):
    """DVC could not bring a stage up to date; the message says why, in the stage's own words."""


def run_stage(name: str, variables: Mapping[str, str] | None = None) -> StagePage:
    """Bring stage `name` up to date by `dvc repro --single-item`.

    A child process, so that a cancelled or crashed task takes the stage and its GPU memory with it; a group of its own,
    so that the terminal's Ctrl-C reaches it only through here. It writes to files, not to a pipe, so that it can save
    its work when this process is killed.

    Args:
        name: name of the stage in dvc.yaml.
        variables: additions to its environment.

    Returns:
        The part of the run page about this stage.

    Raises:
        StageFailedError: the stage failed.
    """
    logger = get_run_logger()
    with show_stage(name, logger) as page:
        follow_stage(name, StageReport(logger, page), variables or {})
    return page


def is_up_to_date(name: str) -> bool:
    """Return whether DVC finds nothing to do for a stage; False as well if it cannot tell."""
    status = [sys.executable, "-m", "dvc", "status", "--json", name]
    answer = subprocess.run(status, capture_output=True, text=True, check=False)
    return answer.returncode == 0 and answer.stdout.strip() == "{}"


def follow_stage(name: str, report: "StageReport", variables: Mapping[str, str]) -> None:
    """Run DVC on one stage, and report what it says while it runs."""
    with tempfile.TemporaryDirectory(prefix="ddpm-stage-") as temporary:
        output, events = Tail(Path(temporary, "output")), Tail(Path(temporary, "events"))
        with output.path.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro", "--single-item", name],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                close_fds=False,  # inheritable locks, of a workspace or a GPU, last as long as the stage
                env=stage_environment(events.path) | dict(variables),
            )
        try:
            while process.poll() is None:
                report.take(output.read_lines(), events.read_lines())
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        except BaseException:
            end_group(process)
            raise
        finally:
            report.take(output.read_lines(is_complete=True), events.read_lines())
    if process.returncode != 0:
        raise report.failure(name)


def stage_environment(events: Path) -> dict[str, str]:
    """Return the environment of a stage: this interpreter first, and what the contract has for it."""
    environment = dict(os.environ) | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "true",
        EVENTS: str(events),
        WATCH_PID: str(os.getpid()),
        PREFECT_RUN: flow_run.name or "",
        PREFECT_RUN_ID: flow_run.id or "",
    }
    if sweeps := [tag.removeprefix(SWEEP_TAG) for tag in flow_run.tags or () if tag.startswith(SWEEP_TAG)]:
        environment[SWEEP] = sweeps[0]
    return environment


def end_group(process: "subprocess.Popen[bytes]", grace_seconds: float = GRACE_SECONDS) -> None:
    """Interrupt every process of the child's group; kill what is still there after the grace period."""
    # SIGINT, as Ctrl-C would: the stage saves its work, and DVC outlives it to leave its locks in order.
    _signal_group(process, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_seconds)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class Tail:
    """A file that another process writes, read line by line as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self._position = 0

    def read_lines(self, *, is_complete: bool = False) -> list[str]:
        """Return the new lines since the last call, without one that is still being written."""
        with self.path.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        if not is_complete:
            new = new[: new.rfind(b"\n") + 1]
        self._position += len(new)
        return new.decode(errors="replace").split("\n")


class StageReport:
    """Report of a running stage, to the log of its task and to the run page; it keeps why the stage fails."""

    def __init__(self, logger: Log, page: StagePage) -> None:
        self._logger, self._page = logger, page
        self._failures: list[Failed] = []
        self._last_lines: deque[str] = deque(maxlen=_NUM_LAST_LINES)
        self._bar_logged_at = time.monotonic()

    def take(self, output: list[str], events: list[str]) -> None:
        """Take the next lines of the output, which DVC and libraries print, and of the events."""
        for line in output:
            shown = line.rstrip().rpartition("\r")[2]
            if shown and not shown.strip().startswith(_ADVICE):
                self._log(logging.INFO, shown)
        for line in events:
            if event := parse_event(line):
                self._page.take(event)
                match event:
                    case Message(level, text):
                        self._log(logging.getLevelNamesMapping()[level.upper()], text)
                    case Progress():
                        self._show_bar(event)
                    case Failed():
                        self._failures.append(event)

    def failure(self, name: str) -> StageFailedError:
        """Log and return why the stage failed: in its processes' words, or by its last lines where it was killed."""
        reasons = [failed.reason for failed in self._failures] or self._last_lines
        error = StageFailedError(f"stage {name} failed: " + "\n".join(reasons))
        error.is_transient = any(failed.is_transient for failed in self._failures)
        self._logger.error(str(error))
        return error

    def _log(self, level: int, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")  # clear the bar
        self._last_lines.append(text)
        self._logger.log(level, text)

    def _show_bar(self, progress: Progress) -> None:
        is_full = progress.percent == 100.0
        text = progress.text if progress.percent is None else f"{progress.text}, {progress.percent:.0f} %"
        if sys.stderr.isatty() and not is_full:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        elif is_full or time.monotonic() - self._bar_logged_at >= LOGGED_BAR_SECONDS:
            self._bar_logged_at = time.monotonic()
            self._log(logging.INFO, text)


def log_failures_once() -> None:
    """Keep Prefect from logging a stage's failure again, with tracebacks; a flow calls this at its start."""
    for name in ("prefect.task_runs", "prefect.flow_runs", "prefect.task_engine", "prefect.flow_engine"):
        logging.getLogger(name).addFilter(_shorten_failure)


def _shorten_failure(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, FlowersError):
        record.msg, record.args, record.exc_info = str(error), None, None
    elif isinstance(error, httpx.TransportError):  # it has ended; not every one of these errors has a text
        record.msg, record.args, record.exc_info = f"the Prefect server does not answer: {error!r}", None, None
    elif (text := record.getMessage()).startswith("Finished in state") and StageFailedError.__name__ in text:
        record.msg, record.args = f"{text.partition('(')[0]}: a stage has failed, as it says above", None
    return not isinstance(error, StageFailedError)
