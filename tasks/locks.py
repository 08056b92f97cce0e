"""Locks on files, which end with the processes that hold them, however those end."""

import fcntl
from typing import IO


def take(lock: IO[str]) -> bool:
    """Lock the open file, if nobody else has; whether it is locked now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
