"""Several processes that work as one, as torchrun starts them; one process alone takes the same paths without it.

What a process does depends on its rank and the number of processes alone, so the functions here need no object to be
passed around: torch.distributed keeps that state.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT = timedelta(hours=24)
"""Longest wait for the other processes, whose share of the work may be larger; a dead one is noticed at once."""


def is_started_by_torchrun() -> bool:
    """Return whether the environment gives this process a rank among others."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, for the block; do nothing without torchrun.

    Tensors on a GPU travel by NCCL, those on the CPU by Gloo.
    """
    if not is_started_by_torchrun():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield
        wait_for_all()  # the first to leave would interrupt the last exchange of the others
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, 0 … world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Return the number of this process on its machine, which is also that of its GPU."""
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
