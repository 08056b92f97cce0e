"""Several processes that work as one, as torchrun starts them; one process alone takes the same paths without it.

What a process does depends on its rank and the number of processes alone, so the functions here need no object to be
passed around: torch.distributed keeps that state.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ddpm.meeting import is_started_by_torchrun, meet, read_number

T = TypeVar("T")

_TIMEOUT = timedelta(hours=24)
"""Longest wait for the other processes, whose share of the work may be larger; a dead one is noticed at once."""

_SILENCE_SECONDS = 120
"""Time after which a machine that does not answer any more counts as lost."""

_KEEP_ALIVE = {
    # It is asked, where nothing is on its way to it,
    "TCP_KEEPIDLE": _SILENCE_SECONDS // 4,
    "TCP_KEEPINTVL": _SILENCE_SECONDS // 4,
    "TCP_KEEPCNT": 3,
    # and otherwise has to confirm what is.
    "TCP_USER_TIMEOUT": 1000 * _SILENCE_SECONDS,
}
"""Options of a connection (tcp(7)), as far as the system has them."""


@contextmanager
def process_group(on_wait: Callable[[str], object] = lambda _: None) -> Iterator[None]:
    """Join the processes that torchrun started, for the block; do nothing without torchrun.

    Tensors on a GPU travel by NCCL, those on the CPU by Gloo. Where Gloo's connection to another machine is lost for
    two minutes, `average_` and the steps of a training fail with an error that `is_lost_peer` knows; a large broadcast
    that is cut in the middle may still wait.

    Args:
        on_wait: is told now and then which processes this one waits for, and where.

    Raises:
        MeetingError: the environment does not name the place to meet, or others have not come.
    """
    if not is_started_by_torchrun():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    gpu = _choose_gpu(torch.cuda.device_count())
    if torch.cuda.is_available():
        torch.cuda.set_device(gpu)
    own, size, store = meet(on_wait)
    dist.init_process_group(backend, store=store, rank=own, world_size=size, timeout=_TIMEOUT)
    try:
        _notice_silence()
        yield
        wait_for_all()  # the first to leave would interrupt the last exchange of the others
    finally:
        dist.destroy_process_group()


def _notice_silence() -> None:
    """Have the system end each connection of this process whose other machine is silent; Gloo would wait for it.

    A process may compute for hours: its machine answers for it. One that is stopped in the middle of an exchange counts
    as silent.
    """
    for descriptor in list(Path("/dev/fd").iterdir()):
        if not descriptor.is_socket():
            continue
        with socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
            if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEP_ALIVE.items():
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _choose_gpu(num_gpus: int) -> int:
    if num_gpus < 2 and "LOCAL_RANK" not in os.environ:
        return 0
    number = read_number("LOCAL_RANK", 0, num_gpus - 1 if num_gpus > 1 else None)
    return number if num_gpus > 1 else 0


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
