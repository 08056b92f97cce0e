"""What a stage says: to the task that started it as events, or else to the terminal."""

import sys

from contract.environment import is_first_process
from contract.events import Level, Message, are_read, emit


def say(stage: str, text: str) -> None:
    """Report progress in words; of several processes the first speaks."""
    if is_first_process():
        _report(stage, "info", text)


def warn(stage: str, text: str) -> None:
    """Report something that people should look at; the stage goes on."""
    _report(stage, "warning", text)


def _report(stage: str, level: Level, text: str) -> None:
    mark = "" if level == "info" else f"{level}: "
    if are_read():
        emit(Message(level, f"{stage}: {mark}{text}"))
    else:
        print(f"{stage}: {mark}{text}", file=sys.stderr if level == "error" else sys.stdout, flush=True)
