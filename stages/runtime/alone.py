"""One run at a time in a folder, such as two runs of the same experiment that share its checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ddpm.distributed import collect, is_first
from stages.runtime.reporting import say

POLL_SECONDS = 1.0

_LOCK = "lock"


@contextmanager
def work_alone_in(folder: Path, stage: str) -> Iterator[None]:
    """Keep other runs of this machine out of the folder during the block; wait until none works in it.

    The lock ends with its process, however that ends. Of several processes that work as one the first holds it, and all
    wait: what they find in the folder is then the same. `stage` stands in the message about waiting.
    """
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        if not _first_has(lock):
            say(stage, f"another run of the same experiment works in {folder}; waiting for its end")
            while not _first_has(lock):
                time.sleep(POLL_SECONDS)
        yield
    finally:
        lock.release()


@contextmanager
def hold_if_free(folder: Path) -> Iterator[bool]:
    """Keep other runs out of a folder during the block, unless one works there; yield whether it was free."""
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        with suppress(Timeout):
            lock.acquire()
        yield lock.is_locked
    finally:
        lock.release()


def _first_has(lock: FileLock) -> bool:
    """Return, in all processes, whether the first one holds the lock by now.

    The caller polls: in one wait of hours the processes would take each other for lost, and heed no signal.
    """
    if is_first():
        with suppress(Timeout):
            lock.acquire()
    return bool(collect(torch.tensor([int(lock.is_locked)])).any())
