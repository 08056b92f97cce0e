"""Locks on files that child processes can inherit; filelock's cannot be inherited."""

import fcntl
from typing import IO


def try_lock(lock: IO[str]) -> bool:
    """Lock the open file unless another process has; return whether it is locked now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
