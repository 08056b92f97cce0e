"""One process at a time where several could meet, such as two runs of the very same experiment."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm.distributed import is_first

LOCK = "lock"


@contextmanager
def alone_in(folder: Path, stage: str) -> Iterator[None]:
    """Inside the block, no other process of this machine is in a block of the same folder; wait until that is so.

    The lock ends with its process, however that ends. The first of several processes waits for all.

    Args:
        folder: what they share; made where it is missing.
        stage: who says so while it waits.
    """
    if not is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{stage}: another run of the same experiment works in {folder}; waiting for its end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
