"""Run a stage in several processes on this machine, by the engine of torchrun."""

import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stages.errors import StageError
from stages.runner import EXIT_INTERRUPTED, WATCH_PID_VARIABLE, Interrupted


def launch(name: str, num_processes: int) -> None:
    """Run `python -m stages.NAME` in `num_processes` processes until all have ended.

    Raises:
        Interrupted: a signal ended them; they have saved their work.
        StageError: one of them failed or was killed, and the others have been ended.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it has to say is said below
    os.environ[WATCH_PID_VARIABLE] = str(os.getpid())  # they do not outlive this process, however it ends
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
    try:
        elastic_launch(config, sys.executable)("-u", "-m", f"stages.{name}")
    except SignalException as signal:
        raise Interrupted(f"interrupted by {signal.sigval.name}; run it again to go on") from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == EXIT_INTERRUPTED:
            raise Interrupted("interrupted; run it again to go on") from None
        how = f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
        raise StageError(
            f"process {rank} of {num_processes} {how}, and with it the others; run it again to go on from what is saved"
        ) from None
