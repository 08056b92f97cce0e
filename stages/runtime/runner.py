"""What every stage's `main` shares: parameters, one clear error, and an end when the flow above has died."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import FrameType
from typing import Any, NoReturn, TextIO

import torch

from contract.errors import StageError
from contract.params import Params, read_params
from ddpm import distributed
from ddpm.checkpoint import CheckpointError

WATCH_PID_VARIABLE = "DDPM_WATCH_PID"
"""The process whose death ends the stage; set by the flow that started it."""

EXIT_ERROR = 1
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: running it again goes on

_BATCHES_OF = {"evaluate": "reference"}
"""The section that holds a stage's batch size, where it is not its own."""

_MORE_MEMORY = {"train": ", raise train.accumulation_steps or set train.gradient_checkpointing"}

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """SIGTERM or Ctrl-C: leave, keeping what is done. Not an Exception, so that no handler of errors swallows it."""


class LastingOutput:
    """A text stream whose reader may go: a lost message must not end the work before it is saved."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can still be written."""
        with suppress(BrokenPipeError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can still be flushed."""
        with suppress(BrokenPipeError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Both outputs survive the death of the flow above, which reads them."""
    with redirect_stdout(LastingOutput(sys.stdout)), redirect_stderr(LastingOutput(sys.stderr)):
        yield


@lasting_output()
def run_stage(
    name: str, stage: Callable[[Params], None], num_processes: Callable[[Params], int] = lambda _params: 1
) -> None:
    """Run one stage with the parameters in force, in as many processes as they ask for, and exit.

    DVC reads params.yaml again when the stage has ended, and would record parameters that the stage never saw; so a
    change of those that it reads is an error.
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    _watch_parent()
    try:
        params = read_params()
        _run(name, stage, params, num_processes(params))
        if read_params().read_by(name) != params.read_by(name):
            raise StageError(f"params.yaml changed while {name} ran, so nothing is recorded: run it again")
    except (StageError, CheckpointError) as error:
        _say(name, "error", error)
        _leave(EXIT_ERROR)
    except torch.OutOfMemoryError as error:
        _say(
            name,
            "error",
            f"{error}\nThe GPU's memory is full: lower {_BATCHES_OF.get(name, name)}.batch_size"
            + _MORE_MEMORY.get(name, ""),
        )
        _leave(EXIT_ERROR)
    except Interrupted as interruption:
        _say(name, "warning", interruption)
        _leave(EXIT_INTERRUPTED)


def _run(name: str, stage: Callable[[Params], None], params: Params, num_processes: int) -> None:
    if num_processes > 1 and not distributed.is_started_by_torchrun():
        from stages.runtime.launcher import launch

        launch(name, num_processes)
        return
    with distributed.process_group():
        try:
            stage(params)
        except RuntimeError as error:
            if not distributed.is_lost_peer(error):
                raise
            raise StageError(f"the connection to another process is lost: {str(error).splitlines()[0]}") from None


def _leave(status: int) -> NoReturn:
    # A signal that comes now, as to the rest of a job whose one process has failed, would break what runs at exit.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def _say(name: str, level: str, what: object) -> None:
    """To standard error; a process that is not the first of several names its number.

    The level tells the flow above how to log it; lines after the first are indented, to show that they belong to it.
    """
    number = os.environ.get("RANK", "0")
    process = "" if number == "0" else f" (process {number})"
    text = str(what).replace("\n", "\n  ")
    print(f"{name}{process}: {level}: {text}", file=sys.stderr, flush=True)


@contextmanager
def interruption_deferred() -> Iterator[Callable[[], str | None]]:
    """Inside the block a signal interrupts nothing; the function given says its name once it has come.

    For work that must not be cut in the middle, such as a training step: it asks between two of them.
    """
    received: list[str] = []
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        signal.signal(number, lambda got, _frame: received.append(signal.Signals(got).name))
    try:
        yield lambda: received[0] if received else None
    finally:
        # As in _interrupt: a second signal must not break the leaving.
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if received else handler)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    # A second signal, from an impatient hand or the end of a grace period, must not break the leaving.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(f"interrupted by {signal.Signals(number).name}; run it again to go on")


def _watch_parent() -> None:
    """End as by SIGTERM when the watched process is gone: its own death could not tell anyone."""
    watched = os.environ.get(WATCH_PID_VARIABLE)
    if watched is None:
        return

    def watch() -> None:
        while _is_alive(int(watched)):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
