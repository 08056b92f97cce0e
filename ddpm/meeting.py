"""The meeting of the processes that torchrun or a batch system starts, at the place that the environment names."""

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

MEETING_SECONDS = 600.0
"""Longest wait for all processes to be there, which batch systems may start one after the other."""

FIRST_WORD_SECONDS, NEXT_WORD_SECONDS = 5.0, 60.0
"""Time after which a waiting process says so, and time between its further words."""

_POLL_SECONDS = 0.1
_ANSWER = timedelta(seconds=10)


class MeetingError(Exception):
    """The processes that should work together have not met; the message says which are missing, and where."""


def is_started_by_torchrun() -> bool:
    """Return whether the environment makes this process one of several, as torchrun and batch systems do.

    Raises:
        MeetingError: RANK is set without WORLD_SIZE, or the other way round.
    """
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if (rank is None) != (size is None):
        given, missing = ("RANK", "WORLD_SIZE") if size is None else ("WORLD_SIZE", "RANK")
        raise MeetingError(
            f"{given}={rank or size} is set, and {missing} is not: set both, as torchrun does, or unset {given} to "
            "work in one process"
        )
    return size is not None and (size != "1" or "MASTER_ADDR" in os.environ)


def meet(on_wait: Callable[[str], object]) -> tuple[int, int, Store]:
    """Return the rank, the number of all processes and their store, as soon as each of them has been there.

    In steps that last seconds at most: a process that waits inside torch heeds no signal.

    Args:
        on_wait: is told now and then which processes this one waits for, and where.

    Raises:
        MeetingError: the environment does not name the place to meet, or others have not come.
    """
    own, size = read_number("RANK", 0, None), read_number("WORLD_SIZE", 1, None)
    if own >= size:
        raise MeetingError(f"RANK={own} must be less than WORLD_SIZE={size}")
    address, port = _read("MASTER_ADDR"), read_number("MASTER_PORT", 0, 65535)
    waiting = _Waiting(f"{address}:{port} (MASTER_ADDR:MASTER_PORT)", own, size, on_wait)
    is_host = own == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # where torchrun is the host itself
    while not is_host and (reason := _try_to_reach(address, port)):
        waiting.go_on(f"process 0, which is to listen there ({reason})")
    try:
        tcp_store = TCPStore(address, port, size, is_host, _ANSWER, wait_for_workers=False, multi_tenant=True)
        store = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", tcp_store)
        store.set(f"process_{own}", "")
        while not store.check([f"process_{number}" for number in range(size)]):
            missing = [number for number in range(size) if not store.check([f"process_{number}"])]
            waiting.go_on(f"process{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))}")
    except (dist.DistError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise MeetingError(f"process {own} cannot meet the others at {waiting.place}: {reason}") from error
    return own, size, store


class _Waiting:
    """The wait of a process for others: it says so now and then, and ends in time."""

    def __init__(self, place: str, own: int, size: int, on_wait: Callable[[str], object]) -> None:
        self.place = place
        self._own, self._size, self._on_wait = own, size, on_wait
        self._since = time.monotonic()
        self._next_word = self._since + FIRST_WORD_SECONDS

    def go_on(self, others: str) -> None:
        """Wait a moment for `others`.

        Raises:
            MeetingError: it has been too long.
        """
        now = time.monotonic()
        if now >= self._since + MEETING_SECONDS:
            raise MeetingError(
                f"process {self._own} of {self._size} has waited {MEETING_SECONDS:.0f} s at {self.place} for {others}: "
                f"start all WORLD_SIZE={self._size} processes, or unset RANK and WORLD_SIZE to work in one"
            )
        if now >= self._next_word:
            self._next_word = now + NEXT_WORD_SECONDS
            self._on_wait(f"process {self._own} of {self._size} waits at {self.place} for {others}")
        time.sleep(_POLL_SECONDS)


def _try_to_reach(address: str, port: int) -> str | None:
    """Return why nobody can be reached at an address; None if somebody can."""
    try:
        with socket.create_connection((address, port), timeout=2.0):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _read(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise MeetingError(
            f"{name} is missing beside RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']}: set it, as "
            "torchrun does, or unset RANK and WORLD_SIZE to work in one process"
        )
    return value


def read_number(name: str, low: int, high: int | None) -> int:
    value = _read(name)
    number = int(value) if value.isascii() and value.isdecimal() else -1
    if number < low or (high is not None and number > high):
        allowed = f"{low} … {high}" if high is not None else f"at least {low}"
        raise MeetingError(f"{name} must be a number, {allowed}, got {value!r}: set it as torchrun does, or unset it")
    return number
