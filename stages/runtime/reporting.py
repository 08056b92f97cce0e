"""What a stage says: to the task that started it as events, or else to the terminal."""

import sys

from tqdm import tqdm

from contract.environment import is_first_process, process_number
from contract.events import Failed, Level, Message, are_read, emit


def say(stage: str, text: str) -> None:
    """Report progress in words; of several processes the first speaks."""
    if is_first_process():
        _report("info", f"{stage}: {text}")


def warn(stage: str, text: str) -> None:
    """Report something that people should look at; the stage goes on, or ends in good order."""
    if is_first_process():
        _report("warning", f"{stage}: warning: {text}")


def fail(stage: str, reason: str, *, is_passing: bool = False) -> None:
    """Report why the stage fails, and whether another try may succeed.

    Each of several processes speaks, and all but the first give their number.
    """
    process = "" if is_first_process() else f"process {process_number()}: "
    if are_read():
        emit(Failed(process + reason, is_passing))
    else:
        _report("error", f"{stage}: error: {process}{reason}".replace("\n", "\n  "))


def _report(level: Level, text: str) -> None:
    if are_read():
        emit(Message(level, text))
    else:
        stream = sys.stderr if level == "error" else sys.stdout
        tqdm.write(text, file=stream)  # leaves a progress bar on the terminal in one piece
        stream.flush()
