"""A slot of the GPUs: with as many slots as cards, no two runs share one."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import task_run

LIMIT = "gpu"
"""The name of the global concurrency limit."""

LEASE_SECONDS = 60.0
"""The least that a server grants. The slot of a killed run comes back when its lease has run out, and the server has
looked for such leases, which it does four times a minute."""

NOTICE_SECONDS = 2.0
"""So long a slot may take before the log says what the run is waiting for."""


class GpuSlotLostError(Exception):
    """The server no longer holds the slot for this run, so another one may take the card."""


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold one slot of the limit for the block; where the server has no such limit, just run it.

    Raises:
        GpuSlotLostError: the slot could not be kept; what ran in the block has been ended.
    """
    if not has_limit():
        yield
        return
    holder = ConcurrencyLeaseHolder(type="task_run", id=task_run.id)
    try:
        with contextlib.ExitStack() as held:
            with _noticed_wait():
                # Not strict about its existence: it may be deleted meanwhile.
                held.enter_context(
                    concurrency(LIMIT, lease_duration=LEASE_SECONDS, holder=holder, raise_on_lease_renewal_failure=True)
                )
            yield
    except asyncio.CancelledError:  # how Prefect interrupts the thread whose lease is lost
        raise GpuSlotLostError(
            f"the slot of the concurrency limit {LIMIT!r} could not be renewed on the Prefect server, so the stage was "
            "ended before another run takes the card; run it again to go on"
        ) from None


def has_limit() -> bool:
    """Whether the server knows the limit: the temporary one of a run by hand does not."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(LIMIT)
        except ObjectNotFound:
            return False
    return True


@contextmanager
def _noticed_wait() -> Iterator[None]:
    """Say in the log that the block waits for a slot, where that takes a while, and when it has one."""
    logger, noticed = get_run_logger(), threading.Event()

    def notice() -> None:
        noticed.set()
        logger.info("Waiting for a free slot of the concurrency limit %r", LIMIT)

    timer = threading.Timer(NOTICE_SECONDS, notice)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if noticed.is_set():
        logger.info("Got a slot of %r", LIMIT)
