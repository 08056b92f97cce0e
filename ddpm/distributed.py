"""Several processes that work as one, as torchrun starts them; one process alone takes the same paths without it.

What a process does depends on its rank and the number of processes alone, so the functions here need no object to be
passed around: torch.distributed keeps that state.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

T = TypeVar("T")

_TIMEOUT = timedelta(hours=24)
"""Longest wait for the other processes, whose share of the work may be larger; a dead one is noticed at once."""

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


@contextmanager
def process_group(on_wait: Callable[[str], object] = lambda _: None) -> Iterator[None]:
    """Join the processes that torchrun started, for the block; do nothing without torchrun.

    Tensors on a GPU travel by NCCL, those on the CPU by Gloo.

    Args:
        on_wait: is told now and then which processes this one waits for, and where.

    Raises:
        MeetingError: the environment does not name the place to meet, or others have not come.
    """
    if not is_started_by_torchrun():
        yield
        return
    own, size = _read_number("RANK", 0, None), _read_number("WORLD_SIZE", 1, None)
    if own >= size:
        raise MeetingError(f"RANK={own} must be less than WORLD_SIZE={size}")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    gpu = _choose_gpu(torch.cuda.device_count())
    if torch.cuda.is_available():
        torch.cuda.set_device(gpu)
    store = _meet(own, size, on_wait)
    dist.init_process_group(backend, store=store, rank=own, world_size=size, timeout=_TIMEOUT)
    try:
        yield
        wait_for_all()  # the first to leave would interrupt the last exchange of the others
    finally:
        dist.destroy_process_group()


def _meet(own: int, size: int, on_wait: Callable[[str], object]) -> Store:
    """Return the store of all processes as soon as each of them has been there.

    In steps that last seconds at most: a process that waits inside torch heeds no signal.
    """
    address, port = _read("MASTER_ADDR"), _read_number("MASTER_PORT", 0, 65535)
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
        raise MeetingError(f"process {own} cannot meet the others at {waiting.place}: {_first_line(error)}") from error
    return store


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


def _read_number(name: str, low: int, high: int | None) -> int:
    value = _read(name)
    number = int(value) if value.isascii() and value.isdecimal() else -1
    if number < low or (high is not None and number > high):
        allowed = f"{low} … {high}" if high is not None else f"at least {low}"
        raise MeetingError(f"{name} must be a number, {allowed}, got {value!r}: set it as torchrun does, or unset it")
    return number


def _choose_gpu(num_gpus: int) -> int:
    if num_gpus < 2 and "LOCAL_RANK" not in os.environ:
        return 0
    number = _read_number("LOCAL_RANK", 0, num_gpus - 1 if num_gpus > 1 else None)
    return number if num_gpus > 1 else 0


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def rank() -> int:
    """Return the number of this process, 0 … world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Return the number of this process on its machine, or of its GPU: 0, if it sees no other."""
    if not dist.is_initialized() or torch.cuda.device_count() == 1:
        return 0
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Return whether this process is the one that writes, logs and prints."""
    return rank() == 0


def share(count: int) -> slice:
    """Return this process's contiguous part of `count` things; the sizes of all parts differ by at most one."""
    return slice(rank() * count // world_size(), (rank() + 1) * count // world_size())


def average_(tensor: Tensor) -> Tensor:
    """Replace `tensor` by its mean over all processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def collect(part: Tensor) -> Tensor:
    """Return the parts of all processes, concatenated in order of rank, on every process.

    Args:
        part: a tensor on the CPU; the parts may differ in length alone.
    """
    if world_size() == 1:
        return part
    lengths = torch.zeros(world_size(), dtype=torch.int64)
    lengths[rank()] = len(part)
    dist.all_reduce(lengths)
    padded = part.new_zeros((int(lengths.max()), *part.shape[1:]))
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([each[:length] for each, length in zip(parts, lengths.tolist(), strict=True)])


def take_from_first(tensors: Mapping[str, Tensor], metadata: T) -> tuple[Mapping[str, Tensor], T]:
    """Return the first of several processes' tensors by name, with what belongs to them, on every process.

    Args:
        tensors: on the CPU; those of the other processes are ignored, whatever their names and shapes.
        metadata: anything that can be pickled.
    """
    said = [({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}, metadata)]
    dist.broadcast_object_list(said)
    kinds, metadata = said[0]
    if not is_first():
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in kinds.items()}
    for tensor in tensors.values():
        dist.broadcast(tensor, 0)
    return tensors, metadata


def wait_for_all() -> None:
    """Wait until every process has called this."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def is_lost_peer(error: RuntimeError) -> bool:
    """Return whether an error means that another process is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "by peer" in str(error)


class Vote:
    """Asynchronous any-reduce of a flag; all processes get the result one step later.

    The votes travel while the processes compute, so no process waits for another.
    """

    def __init__(self) -> None:
        self._pending: tuple[dist.Work, Tensor] | None = None

    def any(self, flag: bool) -> bool:
        """Cast this step's vote and return the result of the step before; a single process gets its own vote back."""
        if world_size() == 1:
            return flag
        answer = False
        if self._pending is not None:
            work, votes = self._pending
            work.wait()
            answer = bool(votes.item())
        votes = torch.tensor(int(flag))
        work = dist.all_reduce(votes, async_op=True)
        self._pending = work, votes
        return answer
