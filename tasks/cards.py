"""The NVIDIA cards of this machine: one stage at a time computes on each, whatever workspace it works in."""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks.locks import take

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Names the cards that a process sees; unset, it sees all."""

POLL_SECONDS = 1.0

# "GPU 0: NVIDIA H100 (UUID: GPU-…)"; the parts into which MIG divides a card stand below it, on lines of their own.
_LISTED = re.compile(r"GPU \d+: .*\(UUID: (\S+)\)")


def visible_cards(environment: Mapping[str, str]) -> dict[str, str]:
    """The UUIDs of the cards that CUDA sees under `environment`, by their names in CUDA_VISIBLE_DEVICES.

    Where that is unset, the UUIDs are the names: CUDA may number the cards otherwise than the driver does.
    """
    uuids, given = _listed_cards(), environment.get(VISIBLE)
    if given is None:
        return {uuid: uuid for uuid in uuids}
    cards: dict[str, str] = {}
    for name in (part.strip() for part in given.split(",")):
        uuid = _uuid_of(name, uuids)
        if uuid is None:
            break  # as CUDA does: an unknown name hides all that follow
        cards[name] = uuid
    return cards


@contextmanager
def claimed(cards: Mapping[str, str], number: int) -> Iterator[dict[str, str]]:
    """Hold so many of `cards` for the block, against all other claims of this user; wait until they are free.

    A claim ends with its process, and with the stage that may outlive it for the moment in which it saves its work.

    Returns:
        What in the environment of the stage names them.
    """
    while (claim := _claim(cards, number)) is None:
        time.sleep(POLL_SECONDS)
    names, locks = claim
    with locks:
        yield {VISIBLE: ",".join(names)}


def _listed_cards() -> list[str]:
    """The UUIDs of the cards that NVIDIA's driver lists; none without it."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False, timeout=60)
    return [found[1] for line in listed.stdout.splitlines() if (found := _LISTED.match(line))]


def _uuid_of(name: str, uuids: Sequence[str]) -> str | None:
    """What CUDA takes the name for: a card's number, the beginning of a UUID, or a part of a card, its own UUID."""
    if name.isdecimal():
        return uuids[int(name)] if int(name) < len(uuids) else None
    if name.startswith("MIG-"):
        return name
    return next((uuid for uuid in uuids if name and uuid.startswith(name)), None)


def _claim(cards: Mapping[str, str], number: int) -> tuple[list[str], contextlib.ExitStack] | None:
    """The names and the locks of so many cards; None, and none is locked, where fewer are free."""
    folder = Path(tempfile.gettempdir()) / f"ddpm-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    with (folder / ".claiming").open("w") as turn, contextlib.ExitStack() as locks:
        # One after the other: two that each had one of two cards would wait for the other's.
        fcntl.flock(turn, fcntl.LOCK_EX)
        names: list[str] = []
        for name, uuid in cards.items():
            lock = locks.enter_context((folder / uuid).open("w"))
            if not take(lock):
                continue
            os.set_inheritable(lock.fileno(), True)
            names.append(name)
            if len(names) == number:
                return names, locks.pop_all()
    return None
