"""Words and progress bars of a stage: to the task that started it as events, or else to the terminal."""

import io
import sys
import time
from typing import Any

from tqdm import tqdm

from contract.environment import is_first_process, process_number
from contract.events import Failed, Progress, emit, has_reader, report

EVENT_SECONDS = 1.0
"""Minimum time between two events of one bar."""

_TEXT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def say(stage: str, text: str) -> None:
    """Report progress in words; of several processes the first speaks."""
    if is_first_process():
        report("info", f"{stage}: {text}")


def warn(stage: str, text: str) -> None:
    """Report something that people should look at; the stage goes on, or ends in good order."""
    if is_first_process():
        report("warning", f"{stage}: warning: {text}")


def fail(stage: str, reason: str, *, is_transient: bool = False) -> None:
    """Report why the stage fails, and whether another try may succeed.

    Each of several processes speaks, and all but the first give their number.
    """
    process = "" if is_first_process() else f"process {process_number()}: "
    if has_reader():
        emit(Failed(process + reason, is_transient))
    else:
        report("error", f"{stage}: error: {process}{reason}".replace("\n", "\n  "))


def progress_bar(description: str, total: int | None, unit: str, initial: int = 0) -> "tqdm[Any]":
    """Return a bar with rate and time left, for the task that reads the events or else for standard error.

    The first of several processes shows it. Without a `total` it only counts.
    """
    bar, stream = (_EventBar, io.StringIO()) if has_reader() else (tqdm, sys.stderr)
    return bar(
        disable=not is_first_process(),
        file=stream,
        total=total,
        initial=initial,
        desc=description,
        unit=unit if unit == "B" else f" {unit}",  # MB, but M images
        unit_scale=True,
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=0.2 if stream.isatty() else EVENT_SECONDS,
    )


class _EventBar(tqdm):  # type: ignore[misc]
    """A bar that is shown by events, the last when it is closed."""

    _next_event, _is_closing = 0.0, False

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # noqa: ARG002 (tqdm's own arguments)
        is_due = self.n != self.total and time.monotonic() >= self._next_event
        if is_due or self._is_closing:
            self._next_event = time.monotonic() + EVENT_SECONDS
            text = self.format_meter(**self.format_dict | {"bar_format": _TEXT if self.total else None})
            emit(Progress(text, 100.0 * self.n / self.total if self.total else None))
        return True

    def close(self) -> None:
        self._is_closing = True
        super().close()
