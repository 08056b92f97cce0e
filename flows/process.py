"""The process of a command, as a shell sees it: its signals, its user, its output, its errors and its exit status."""

import getpass
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from cyclopts import CycloptsError

from contract.errors import FlowersError, explain_os_error
from contract.interruption import handle_signals

EXIT_FAILED, EXIT_MISUSED, EXIT_UNREAD = 1, 2, 128 + signal.SIGPIPE
OWN_PACKAGES = ("contract", "ddpm", "flows", "stages", "tasks", "tracking")


def interrupt_on_signals() -> list[int]:
    """Raise KeyboardInterrupt with the number of the signal at SIGTERM and SIGINT.

    Returns:
        The numbers of the signals that have come, which grows: libraries turn the exception into errors of their own.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt(number)

    handle_signals(interrupt)
    return received


@contextmanager
def keep_interrupt(signals: Sequence[int]) -> Iterator[None]:
    """Raise an error of the block as KeyboardInterrupt if a signal has come: a library may have made it of that."""
    try:
        yield
    except Exception as error:
        if signals:
            raise KeyboardInterrupt(signals[0]) from error
        raise


def name_user() -> None:
    """Name the user where the system does not know the id, as in containers: DVC, torch and MLflow ask for a name."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


@contextmanager
def report_errors(command: str) -> Iterator[None]:
    """End the process with one line and a status, where an error meant for people ends the block.

    Args:
        command: beginning of the line.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `head`
        drop_output()
        sys.exit(EXIT_UNREAD)
    except CycloptsError as error:
        fail(f"{command}: {error}", EXIT_MISUSED)
    except FlowersError as error:
        fail(f"{command}: {error}")
    except OSError as error:  # such as a file or a disk that cannot be written; it names the file
        drop_output()
        fail(f"{command}: {(error.filename and explain_os_error(error)) or ' '.join(str(error).split())}")
    except KeyboardInterrupt as interruption:
        fail(f"{command}: interrupted", 128 + (interruption.args or [signal.SIGINT])[0])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OWN_PACKAGES:
            raise
        fail(f"{command}: the package {error.name} is not installed: pip install 'flowers-ddpm[pipeline]'")


def drop_output() -> None:
    """Drop what is still to be printed: Python would try once more at its end, and complain."""
    with suppress(AttributeError, OSError):  # there may be no output, or one in memory
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str, status: int = EXIT_FAILED) -> NoReturn:
    """Print the message to stderr and end with the status."""
    print(message, file=sys.stderr)
    sys.exit(status)
