"""Run a stage in several processes on this machine, by the engine of torchrun."""

import logging
import os
import signal
import sys
from collections.abc import Mapping

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from contract.environment import WATCH_PID
from contract.errors import StageError
from stages import EXIT_INTERRUPTED
from stages.runtime.interruption import Interrupted

SHUTDOWN_SECONDS = 50
"""Time that processes have to save their work; less than the flow's own grace, after which it kills them all."""


def launch(name: str, num_processes: int) -> None:
    """Run `python -m stages.NAME` in `num_processes` processes until all have ended.

    Raises:
        Interrupted: a signal ended them.
        StageError: there are fewer GPUs, or one of them failed or was killed, and the others have been ended.
    """
    if 0 < torch.cuda.device_count() < num_processes:
        raise StageError(
            f"num_processes={num_processes} takes as many GPUs, and {name} sees {torch.cuda.device_count()}: lower it"
        )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the errors below say it in one line
    os.environ[WATCH_PID] = str(os.getpid())  # they do not outlive this process, however it ends
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=f"{name}-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    if hasattr(config, "shutdown_timeout"):  # not in older releases, whose 30 seconds are their own
        config.shutdown_timeout = SHUTDOWN_SECONDS
    try:
        elastic_launch(config, sys.executable)("-u", "-m", f"stages.{name}")
    except SignalException as interruption:
        raise Interrupted(f"interrupted by {interruption.sigval.name}; run it again to go on") from None
    except ChildFailedError as error:
        raise explain_failure(error.failures, num_processes) from None


def explain_failure(failures: Mapping[int, ProcessFailure], num_processes: int) -> StageError | Interrupted:
    """Return the error that names the process which failed first; an interruption is no failure."""

    def by_time(item: tuple[int, ProcessFailure]) -> tuple[int, bool]:
        # At the same time, a killed process comes before those that end because they have lost it.
        _, failure = item
        was_killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM  # which the launcher sends the others
        return failure.timestamp, not was_killed

    rank, failure = min(failures.items(), key=by_time)
    if failure.exitcode == EXIT_INTERRUPTED:
        return Interrupted("interrupted; run it again to go on")
    how = f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
    return StageError(
        f"process {rank} of {num_processes} {how}, and with it the others; run it again to go on from what is saved"
    )
