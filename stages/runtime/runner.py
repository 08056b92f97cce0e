"""Entry point that all stages share: parameters, signals, several processes, and one clear error."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from contract.environment import is_first_process, leave_repository, work_alone
from contract.errors import FlowersError, StageError, explain_os_error
from contract.events import has_reader, report
from contract.params import Params, read_params
from contract.paths import BUILD, DATA
from stages import EXIT_INTERRUPTED
from stages.runtime.dependencies import Dependencies
from stages.runtime.interruption import Interrupted, ignore_signals, interrupt_on_signals
from stages.runtime.reporting import fail, warn

EXIT_ERROR = 1

_SECTION_OF_BATCH_SIZE = {"evaluate": "reference"}
"""Section of params.yaml that holds a stage's batch size, where it is not the stage's own."""

_MORE_MEMORY = {"train": ", raise train.accumulation_steps or set train.gradient_checkpointing"}


Afterwards: TypeAlias = Callable[[], None] | None
"""Work that remains once a stage's result stands."""


def run_stage(
    name: str, stage: Callable[[Params], Afterwards], num_processes: Callable[[Params], int] | None = None
) -> None:
    """Run one stage with the parameters in force: in this process, or in as many as `num_processes` reads from them.

    DVC reads params.yaml and the dependencies again when the stage has ended, and would record parameters, code and
    data that the stage never saw; so a change of those that it uses is an error.

    Raises:
        SystemExit: the stage has failed (status 1) or was interrupted (status 75), and has reported why.
    """
    leave_repository()
    if has_reader():
        warnings.showwarning = lambda message, *_: warn(name, str(message))
    try:
        interrupt_on_signals()
        if num_processes is None:
            work_alone()
        _check_place()
        params, dependencies = read_params(), Dependencies(name) if is_first_process() else None
        if num_processes is None:
            finish = stage(params)
        else:
            finish = run_in_processes(name, lambda: stage(params), num_processes(params))
        _check_unchanged(name, params, dependencies)
        if finish:
            finish()
    except Interrupted as interruption:
        ignore_signals()
        warn(name, str(interruption))
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        ignore_signals()  # such as the launcher's, which ends the other processes when one has failed
        if reason := explain_error(name, error):
            fail(name, reason, is_transient=getattr(error, "is_transient", False))
            sys.exit(EXIT_ERROR)
        if has_reader():  # otherwise the traceback that Python prints is enough
            fail(name, traceback.format_exception_only(error)[-1].strip())
        raise


def _check_place() -> None:
    place = Path(os.path.realpath(BUILD))
    if not place.is_relative_to(Path.cwd()):
        raise StageError(
            f"{BUILD} is a link to {place}, and DVC keeps no results outside of the project: make it a "
            f"folder; {DATA} may be a link, and `dvc cache dir` puts DVC's cache on another disk"
        )


def _check_unchanged(name: str, params: Params, dependencies: Dependencies | None) -> None:
    if read_params().read_by(name) != params.read_by(name):
        raise StageError(f"params.yaml changed while {name} ran, so nothing is recorded: run it again")
    if dependencies:
        dependencies.check()


def run_in_processes(name: str, work: Callable[[], Afterwards], num_processes: int) -> Afterwards:
    """Start the processes of a stage, or do the work of this one among them."""
    # With torch, whose seconds a stage that works alone need not wait for.
    from ddpm.distributed import process_group
    from ddpm.meeting import is_started_by_torchrun

    if num_processes > 1 and not is_started_by_torchrun():
        from stages.runtime.launcher import launch

        launch(name, num_processes)
        return None
    with process_group(on_wait=lambda text: report("info", f"{name}: {text}")):
        return work()


def explain_error(stage: str, error: Exception) -> str | None:
    """Return an error that people can mend in words; None for a fault of the program, which needs its traceback."""
    if isinstance(error, FlowersError):
        return str(error)
    if isinstance(error, OSError) and (reason := explain_os_error(error)):
        return reason
    import torch  # seconds, which the errors above need not wait for

    from ddpm.checkpoint import CheckpointError
    from ddpm.distributed import is_lost_peer
    from ddpm.images import NotANumberError
    from ddpm.meeting import MeetingError

    if isinstance(error, CheckpointError | MeetingError | NotANumberError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        section, more = _SECTION_OF_BATCH_SIZE.get(stage, stage), _MORE_MEMORY.get(stage, "")
        return f"{error}\nThe GPU's memory is full: lower {section}.batch_size{more}"
    if isinstance(error, RuntimeError) and is_lost_peer(error):
        return f"the connection to another process is lost: {str(error).splitlines()[0]}"
    return None
