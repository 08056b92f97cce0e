"""Flow runs of the service at its start and end: the pool that starts them, and their processes."""

from contextlib import suppress

import psutil
import requests

from contract.errors import FlowersError
from flows.service import POOL, STATE

HELD = STATE / "pool-is-held"
"""Marker file: the end of a service, not a user, has paused the pool."""

RUN_GRACE_SECONDS = 75.0
"""Time for runs in progress to end; their stages have 60 seconds to save their work (tasks/stage.py)."""


def hold_pool(api: str) -> None:
    """Pause the pool, so that the worker starts no waiting run while those in progress end; they stay queued."""
    with suppress(requests.RequestException):
        pool = requests.get(f"{api}/work_pools/{POOL}", timeout=5).json()
        if pool.get("is_paused") is False:
            HELD.touch()
            requests.patch(f"{api}/work_pools/{POOL}", json={"is_paused": True}, timeout=5)


def release_pool(api: str) -> None:
    """Resume the pool, if the end of a service has paused it."""
    if HELD.exists():
        try:
            requests.patch(f"{api}/work_pools/{POOL}", json={"is_paused": False}, timeout=30).raise_for_status()
        except requests.RequestException as error:
            raise FlowersError(f"the work pool cannot be resumed: {error}") from error
        HELD.unlink()


def end_runs(api: str) -> None:
    """Terminate the flow runs that report to this server, and wait for their end while the server still runs.

    A worker that is stopped kills its runs at once, and a worker that was killed has left its runs behind.
    """
    runs = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it belongs to another user, or has ended
            if "prefect.engine" in process.cmdline() and process.environ().get("PREFECT_API_URL") == api:
                process.terminate()
                runs.append(process)
    psutil.wait_procs(runs, timeout=RUN_GRACE_SECONDS)
