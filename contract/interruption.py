"""Signals in the first seconds of a program, while it still imports."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from contract.environment import is_first_process

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # switched off by the caller, as nohup does
            signal.signal(number, leave)
