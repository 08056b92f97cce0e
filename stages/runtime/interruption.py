"""Interruption of a stage: by SIGTERM, by Ctrl-C, or by the death of the process that started it."""

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from contract.environment import WATCH_PID
from contract.interruption import SIGNALS


class Interrupted(BaseException):
    """The stage has to end and keep what is done. Not an Exception, so that no handler of errors catches it."""


def interrupt_on_signals() -> None:
    """Raise `Interrupted` in the main thread at the next SIGTERM or SIGINT.

    The end of the process that DDPM_WATCH_PID names, however it ends, counts as SIGTERM.
    """
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    if watched := os.environ.get(WATCH_PID):
        threading.Thread(
            target=_watch, args=(int(watched), threading.get_ident()), name="watch-parent", daemon=True
        ).start()


def ignore_signals() -> None:
    """Ignore SIGTERM and SIGINT from here on, so that a second signal cannot break the clean-up."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def defer_interruption() -> Iterator[Callable[[], str | None]]:
    """Let signals interrupt nothing inside the block; yield a function that names the first signal since, or None."""
    received: list[str] = []
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, lambda got, _frame: received.append(signal.Signals(got).name))
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if received else handler)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    ignore_signals()
    raise Interrupted(f"interrupted by {signal.Signals(number).name}; run it again to go on")


def _watch(pid: int, main_thread: int) -> None:
    with suppress(ProcessLookupError):  # it has ended already
        end = select.poll()
        end.register(os.pidfd_open(pid), select.POLLIN)  # unlike its id, no later process gets it
        end.poll()
    # Sent to the process, it might reach another thread, and the main one would not wake for it.
    signal.pthread_kill(main_thread, signal.SIGTERM)
