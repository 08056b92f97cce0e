"""One run at a time where several could meet, such as two runs of the very same experiment."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import torch

from ddpm.distributed import collected, is_first

LOCK = "lock"

POLL_SECONDS = 1.0


@contextmanager
def alone_in(folder: Path, stage: str) -> Iterator[None]:
    """Inside the block, no other run of this machine is in a block of the same folder; wait until that is so.

    The lock ends with its process, however that ends. Of several processes that work as one the first has it, and all
    wait: what they find in the folder is then the same.

    Args:
        folder: what they share; made where it is missing.
        stage: who says so while it waits.
    """
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") if is_first() else nullcontext() as lock:
        if not _first_has(lock):
            if is_first():
                print(f"{stage}: another run of the same experiment works in {folder}; waiting for its end", flush=True)
            while not _first_has(lock):
                time.sleep(POLL_SECONDS)
        yield


def _first_has(lock: IO[str] | None) -> bool:
    """Whether the first process has the lock by now, on all of them.

    Asked again and again: in one wait of hours the processes would take each other for lost, and heed no signal.
    """
    taken = lock is not None and _take(lock)
    return bool(collected(torch.tensor([int(taken)])).any())


def _take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
