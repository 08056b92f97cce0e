"""Events: how a stage tells the task that started it what happens, beside what it prints for people.

A stage appends one JSON line per event to the file that the environment variable `contract.environment.EVENTS` names;
the task reads the file while the stage runs. Without the variable nothing is written.
"""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from contract.environment import EVENTS

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Message:
    """A line for people."""

    level: Level
    text: str


@dataclass(frozen=True)
class Progress:
    """Position of a progress bar."""

    text: str
    """counts, times and rate, for display"""
    percent: float | None
    """0 … 100; None where the end is unknown"""


@dataclass(frozen=True)
class RunOpened:
    """MLflow run that records the stage."""

    run_id: str
    experiment_id: str


@dataclass(frozen=True)
class PictureWritten:
    """Picture of samples drawn during training."""

    path: str
    step: int


@dataclass(frozen=True)
class Failed:
    """The stage has failed."""

    reason: str
    is_transient: bool
    """whether another try may succeed, as after a broken network connection"""


Event: TypeAlias = Message | Progress | RunOpened | PictureWritten | Failed

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


def has_reader() -> bool:
    """Return whether a task reads this process's events."""
    return EVENTS in os.environ


def emit(event: Event) -> None:
    """Append an event to the file of events, if there is one; a file that cannot be written to is left alone."""
    if path := os.environ.get(EVENTS):
        line = json.dumps({"kind": type(event).__name__} | asdict(event)) + "\n"
        # One write call in append mode: lines of several processes do not mix. The reader may have died.
        with suppress(OSError), Path(path).open("ab", buffering=0) as file:
            file.write(line.encode())


def report(level: Level, text: str) -> None:
    """Tell people something: through the task that reads the events, or else on the terminal."""
    if has_reader():
        emit(Message(level, text))
        return
    from tqdm import tqdm  # here, because most commands show no bar

    stream = sys.stderr if level == "error" else sys.stdout
    tqdm.write(text, file=stream)  # leaves a progress bar on the terminal in one piece
    stream.flush()


def parse_event(line: str) -> Event | None:
    """Return the event that `emit` wrote as this line; None for anything else, such as a line cut by a full disk."""
    try:
        fields = json.loads(line)
        return _KINDS[fields.pop("kind")](**fields)
    except (ValueError, TypeError, AttributeError, KeyError):
        return None
