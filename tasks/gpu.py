"""Slots of the GPUs, one a process of a stage, and with them cards of this machine: no two runs share one."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLeaseHolder
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import task_run

from tasks.cards import claimed, visible_cards

LIMIT = "gpu"
"""The name of the global concurrency limit."""

LEASE_SECONDS = 60.0
"""The least that a server grants. The slot of a killed run comes back when its lease has run out, and the server has
looked for such leases, which it does four times a minute."""

NOTICE_SECONDS = 2.0
"""So long a slot or a card may take before the log says what the run is waiting for."""


class GpuSlotLostError(Exception):
    """The server no longer holds the slots for this run, so another one may take them."""


class TooFewGpusError(Exception):
    """A stage asks for more slots or cards than there are, and would wait for them without an end."""


@contextmanager
def gpu_slots(num_processes: int) -> Iterator[dict[str, str]]:
    """Hold a slot of the limit and a card of this machine for each process of a stage, as long as the block lasts.

    Where the server has no such limit, nothing is held. Where the machine has no card, the processes share its cores,
    and one slot.

    Returns:
        What in the environment of the stage names its cards.

    Raises:
        TooFewGpusError: the limit has fewer slots than that, or the machine fewer cards.
        GpuSlotLostError: the slots could not be kept; what ran in the block has been ended.
    """
    num_slots = slots_of_limit()
    if num_slots is None:
        yield {}
        return
    cards = visible_cards(os.environ)
    wanted = num_processes if cards else 1
    _require_enough(wanted, num_slots, len(cards))
    try:
        with contextlib.ExitStack() as held:
            with _noticed_wait(f"slot of the concurrency limit {LIMIT!r}", f"slot of {LIMIT!r}"):
                holder = ConcurrencyLeaseHolder(type="task_run", id=task_run.id)
                # Not strict about the limit's existence: it may be deleted meanwhile.
                slots = concurrency(
                    LIMIT, wanted, lease_duration=LEASE_SECONDS, holder=holder, raise_on_lease_renewal_failure=True
                )
                held.enter_context(slots)
            # The slots may be of several machines, or more than there are cards.
            with _noticed_wait("GPU of this machine", "GPU of this machine"):
                names = held.enter_context(claimed(cards, wanted)) if cards else {}
            yield names
    except asyncio.CancelledError:  # how Prefect interrupts the thread whose lease is lost
        raise GpuSlotLostError(
            f"the slot of the concurrency limit {LIMIT!r} could not be renewed on the Prefect server, so the stage was "
            "ended before another run takes the card; run it again to go on"
        ) from None


def slots_of_limit() -> int | None:
    """How many slots the limit has; None where it is off, or where, as for a run by hand, the server has none."""
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(LIMIT)
        except ObjectNotFound:
            return None
    return limit.limit if limit.active else None


def _require_enough(wanted: int, num_slots: int, num_cards: int) -> None:
    if num_slots < wanted:
        raise TooFewGpusError(
            f"num_processes={wanted} takes as many slots of the concurrency limit {LIMIT!r}, which has {num_slots}: "
            f"lower it, or `prefect gcl update {LIMIT} --limit {wanted}` where there are so many GPUs"
        )
    if 0 < num_cards < wanted:
        raise TooFewGpusError(f"num_processes={wanted} takes as many GPUs, and this run sees {num_cards}: lower it")


@contextmanager
def _noticed_wait(what: str, in_short: str) -> Iterator[None]:
    """Say in the log that the block waits for what is free, where that takes a while, and when it has it."""
    logger, noticed = get_run_logger(), threading.Event()

    def notice() -> None:
        noticed.set()
        logger.info("Waiting for a free %s", what)

    timer = threading.Timer(NOTICE_SECONDS, notice)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if noticed.is_set():
        logger.info("Got a %s", in_short)
