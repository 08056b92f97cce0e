"""Signals that end a program: which they are, and what they do while it still imports."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from contract.environment import is_first_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a program once it has cleaned up."""


def handle_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Set the handler of SIGTERM and SIGINT, but for one that the caller ignores, as scripts do for background jobs."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def leave_on_signals(program: str, status: Callable[[int], int]) -> None:
    """End this process with one line at the next SIGTERM or SIGINT, until other handlers are set.

    An exception would end in the middle of other people's imports, which turn it into errors of their own.

    Args:
        program: beginning of the line.
        status: gives the exit status after a signal.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        if is_first_process():
            line = f"{program}: interrupted by {signal.Signals(number).name} before anything began\n"
            os.write(sys.stderr.fileno(), line.encode())
        os._exit(status(number))

    handle_signals(leave)
