"""Run one DVC stage in a child process group: its output goes to the Prefect log, and its end comes with the task's."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from contract.params import ParamsError
from tasks.output import LineLevels, Reason, Said, is_advice, streamed
from tasks.run_page import StagePage, stage_page

GRACE_SECONDS = 60.0
"""How long a stage may take to save its work when it is told to stop.

A Prefect worker kills the flow of a cancelled run after half of it. The stage, in a group of its own, is then not
killed: it has been told to stop, and goes when its work is saved."""

LOGGED_BAR_SECONDS = 30.0

SWEEP_TAG = "sweep:"
"""What begins the tag of a flow run that belongs to a sweep; the sweep's name follows."""


class StageFailedError(Exception):
    """DVC could not bring a stage up to date; the message says why, in the stage's own words."""


def run_stage(name: str, variables: Mapping[str, str] | None = None) -> StagePage:
    """Bring stage `name` up to date by `dvc repro --single-item`.

    A child process, so that a cancelled or crashed task takes the stage and its GPU memory with it; a group of its own,
    so that the terminal's Ctrl-C reaches it only through here.

    Args:
        name: as dvc.yaml names it.
        variables: of its environment, beside those of every stage.

    Returns:
        Its part of the run page, which knows what has been shown.

    Raises:
        StageFailedError: the stage failed.
    """
    logger = get_run_logger()
    log = StageLog(logger)
    with stage_page(name, logger) as page:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", "--single-item", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=False,  # a lock made inheritable, of a workspace or a card, lasts as long as the stage
            env=stage_environment() | dict(variables or {}),
        )
        try:
            assert process.stdout is not None
            for said in streamed(process.stdout):
                page.take(said)
                log.take(said)
            exit_status = process.wait()
        except BaseException:
            for line in end_group(process):
                log.take(Said(line, is_passing=False))
            raise
    if exit_status != 0:
        raise StageFailedError(f"stage {name} failed: {log.reason}")
    return page


class StageLog:
    """Brings what a stage says into the log of its task: lines with their levels, and now and then a progress bar."""

    def __init__(self, logger: "logging.Logger | logging.LoggerAdapter[Any]") -> None:
        self.reason = Reason()
        self._logger = logger
        self._levels = LineLevels()
        self._show_bar = show_bar_on_terminal if sys.stderr.isatty() else LoggedBar(logger)

    def take(self, said: Said) -> None:
        """Log a line; show a state of a bar where it can be seen."""
        if said.is_passing:
            self._show_bar(said.text)
        elif not is_advice(said.text):
            level = self._levels.of(said.text)
            self.reason.add(level, said.text)
            self._logger.log(level, said.text)


def stage_environment() -> dict[str, str]:
    """The environment of the child: this interpreter first, unbuffered, and whom to watch and name."""
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment["PYTHONUNBUFFERED"] = "1"
    environment["DVC_NO_ANALYTICS"] = "true"
    environment["DDPM_WATCH_PID"] = str(os.getpid())
    environment["DDPM_PREFECT_FLOW_RUN"] = f"{flow_run.name} ({flow_run.id})"
    if name := next((tag.removeprefix(SWEEP_TAG) for tag in flow_run.tags or () if tag.startswith(SWEEP_TAG)), None):
        environment["DDPM_SWEEP"] = name
    return environment


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


def show_bar_on_terminal(text: str) -> None:
    """Moves the bar on the terminal; nothing of it goes to the log."""
    sys.stderr.write(f"\r{text}")
    sys.stderr.flush()


class LoggedBar:
    """Where no terminal is, the log takes a state of the bar now and then."""

    def __init__(self, logger: "logging.Logger | logging.LoggerAdapter[Any]") -> None:
        self._logger = logger
        self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        """Take the next state."""
        if time.monotonic() - self._last >= LOGGED_BAR_SECONDS:
            self._last = time.monotonic()
            self._logger.info(text)


class OfFailedStages(logging.Filter):
    """What Prefect logs of a failed stage: that it has failed. The stage has said itself why, once.

    Parameters that cannot be used are told in their own words, without the way there.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave out where Prefect caught the error, and of the final state the repeated reason."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, StageFailedError):
            return False
        if isinstance(error, ParamsError):
            record.msg, record.args, record.exc_info = str(error), None, None
            return True
        said = record.getMessage()
        if said.startswith("Finished in state") and StageFailedError.__name__ in said:
            record.msg, record.args = f"{said.partition('(')[0]}: a stage has failed, as it says above", None
        return True


for _name in ("prefect.task_runs", "prefect.flow_runs", "prefect.task_engine", "prefect.flow_engine"):
    logging.getLogger(_name).addFilter(OfFailedStages())
