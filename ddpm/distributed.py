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
"""How long a process waits for the others, which may have a larger share of the work; the dead are noticed at once."""


def is_started_by_torchrun() -> bool:
    """Whether the environment names this process's rank among others."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started; nothing where it did not.

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
        wait_for_all()  # who leaves first would cut the others off in the middle of their last exchange
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, 0 … world_size() - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """The number of this process on its own machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that writes, logs and prints."""
    return rank() == 0


def share(count: int) -> slice:
    """Which of `count` things are this process's: contiguous, all shares equal up to one."""
    return slice(rank() * count // world_size(), (rank() + 1) * count // world_size())


def average_(tensor: Tensor) -> Tensor:
    """Replace `tensor` by its mean over all processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def collected(part: Tensor) -> Tensor:
    """The parts of all processes, one after the other by rank, on every one of them.

    Args:
        part: on the CPU; the parts may differ in length, but in nothing else.
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
    """Until every process is here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error means that another process is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "by peer" in str(error)


class Vote:
    """Whether any process wants something, asked at every step, and answered alike on all at the same step.

    The answer is that of the step before: the processes exchange it while they compute, and nobody waits.
    """

    def __init__(self) -> None:
        self._pending: tuple[dist.Work, Tensor] | None = None

    def any(self, wanted: bool) -> bool:
        """Cast this step's vote; with one process it counts at once."""
        if world_size() == 1:
            return wanted
        answer = False
        if self._pending is not None:
            work, votes = self._pending
            work.wait()
            answer = bool(votes.item())
        votes = torch.tensor(int(wanted))
        work = dist.all_reduce(votes, async_op=True)
        self._pending = work, votes
        return answer
