"""Entry point that all stages share: parameters, signals, several processes, and one clear error."""

import sys
import traceback
import warnings
from collections.abc import Callable

import torch

from contract.errors import FlowersError, StageError
from contract.events import are_read
from contract.params import Params, read_params
from ddpm import distributed
from ddpm.checkpoint import CheckpointError
from stages.runtime.interruption import (
    EXIT_INTERRUPTED,
    Interrupted,
    ignore_signals,
    interrupt_on_signals,
    interrupt_with_parent,
)
from stages.runtime.reporting import fail, warn

EXIT_ERROR = 1

_SECTION_OF_BATCH_SIZE = {"evaluate": "reference"}
"""Section of params.yaml that holds a stage's batch size, where it is not the stage's own."""

_MORE_MEMORY = {"train": ", raise train.accumulation_steps or set train.gradient_checkpointing"}


def run_stage(
    name: str, stage: Callable[[Params], None], num_processes: Callable[[Params], int] = lambda _params: 1
) -> None:
    """Run one stage with the parameters in force, in as many processes as they ask for.

    DVC reads params.yaml again when the stage has ended, and would record parameters that the stage never saw; so a
    change of those that it reads is an error.

    Raises:
        SystemExit: the stage has failed (status 1) or was interrupted (status 75), and has reported why.
    """
    if are_read():
        warnings.showwarning = lambda message, *_: warn(name, str(message))
    try:
        interrupt_on_signals()
        interrupt_with_parent()
        _run_with_params(name, stage, num_processes)
    except Interrupted as interruption:
        ignore_signals()
        warn(name, str(interruption))
        sys.exit(EXIT_INTERRUPTED)
    except (FlowersError, CheckpointError) as error:
        ignore_signals()  # such as the launcher's, which ends the other processes when one has failed
        fail(name, str(error), is_passing=getattr(error, "is_passing", False))
        sys.exit(EXIT_ERROR)
    except Exception as error:
        if are_read():  # otherwise the traceback that Python prints is enough
            fail(name, traceback.format_exception_only(error)[-1].strip())
        raise


def _run_with_params(name: str, stage: Callable[[Params], None], num_processes: Callable[[Params], int]) -> None:
    params = read_params()
    try:
        _run(name, stage, params, num_processes(params))
    except torch.OutOfMemoryError as error:
        section = _SECTION_OF_BATCH_SIZE.get(name, name)
        raise StageError(
            f"{error}\nThe GPU's memory is full: lower {section}.batch_size{_MORE_MEMORY.get(name, '')}"
        ) from None
    if read_params().read_by(name) != params.read_by(name):
        raise StageError(f"params.yaml changed while {name} ran, so nothing is recorded: run it again")


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
