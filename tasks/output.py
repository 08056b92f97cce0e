"""What a stage says, as it comes: whole lines with their levels, and between them the states of its progress bar."""

import logging
import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_KEPT_LINES = 8

# "train: error: …" by a stage, "ERROR: …" by DVC, "….py:12: UserWarning: …" by Python
_MARKED = re.compile(r"(?:[a-z]+(?: \(process \d+\))?: )?(error|warning): (.*)", re.IGNORECASE)
_PYTHON_WARNING = re.compile(r"\S+:\d+: \w*Warning: ")
_TRACEBACK = "Traceback (most recent call last):"

# What DVC advises after every stage; the README says it once.
_HINTS = ("To track the changes with git", "git add", "To enable auto staging", "dvc config", "Use `dvc push`")

# What DVC says of a stage that has said itself what is wrong.
_DVC_REPEATS = "failed to reproduce"

# As progress.py lets tqdm write it: "train:  50%|█████     | 12.0k/24.0k [00:10<00:10, 1.20k images/s, loss=0.1]".
_BAR = re.compile(r"(?P<name>[^:|]+): +(?P<percent>\d+)%\|[^|]*\| *(?P<rest>.*)")

# Any state of a bar, also of one without an end. The next one begins with a return; what a program says in between
# stands right behind it.
_STATE = re.compile(r"[^:|]+: +(?:\d+%\|[^|]*\| *)?\S+ \[[\d:]+[<,][^\]]*\](?=.)")


@dataclass(frozen=True)
class Said:
    """A piece of a stage's output."""

    text: str
    is_passing: bool
    """a state of a progress bar, which the next one replaces; otherwise a line"""


@dataclass(frozen=True)
class Progress:
    """Where a progress bar stands."""

    percent: float
    description: str
    """counts, times and rate, as the bar gives them"""


def streamed(output: IO[bytes]) -> Iterator[Said]:
    """Lines as they come, whole, and the states of a progress bar between them; nothing that is empty."""
    pending = b""
    while chunk := os.read(output.fileno(), 65536):
        *parts, pending = (pending + chunk).replace(b"\r\n", b"\n").splitlines(keepends=True)
        if pending.endswith(b"\n"):  # but not \r, which may be half of \r\n
            parts.append(pending)
            pending = b""
        for part in parts:
            yield from _said(part.decode(errors="replace").rstrip(), is_passing=part.endswith(b"\r"))
    yield from _said(pending.decode(errors="replace").strip(), is_passing=False)


def _said(text: str, is_passing: bool) -> Iterator[Said]:
    if state := _STATE.match(text):
        yield Said(state[0], is_passing=True)
        text = text[state.end() :]
    if text:
        yield Said(text, is_passing)


def is_advice(line: str) -> bool:
    """Whether the line is DVC's advice, the same after every stage."""
    return line.strip().startswith(_HINTS)


def progress_of(text: str) -> Progress | None:
    """Where the bar stands that a text shows; None for one without an end, and for what is no bar."""
    if (bar := _BAR.match(text.strip())) is None:
        return None
    return Progress(float(bar["percent"]), f"{bar['name'].strip()}: {bar['rest'].strip()}")


class LineLevels:
    """The level of each line of a stage, by what it says.

    A stage marks its errors and warnings, "train: error: …", as DVC does, "ERROR: …". An indented line belongs to the
    one before it; a traceback is an error up to the line that names its exception.
    """

    def __init__(self) -> None:
        self._level = logging.INFO
        self._is_in_traceback = False

    def of(self, line: str) -> int:
        """The level of the next line."""
        if line.startswith((" ", "\t")):
            return self._level
        if self._is_in_traceback:
            self._is_in_traceback = False
        elif line == _TRACEBACK:
            self._level, self._is_in_traceback = logging.ERROR, True
        elif marked := _MARKED.match(line):
            self._level = getattr(logging, marked[1].upper())
        else:
            self._level = logging.WARNING if _PYTHON_WARNING.match(line) else logging.INFO
        return self._level


class Reason:
    """Why a stage failed: the errors that it told, or where it told none, its last lines."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)

    def add(self, level: int, line: str) -> None:
        """Take the next line in."""
        self._last.append(line)
        if level >= logging.ERROR:
            marked = _MARKED.match(line)
            self._errors.append(marked[2] if marked else line)

    def __str__(self) -> str:
        told = [error for error in self._errors if not error.startswith(_DVC_REPEATS)]
        return "\n".join(told or self._last)
