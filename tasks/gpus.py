"""GPU slots of this machine: no two runs compute on one GPU at once, whichever workspace or service they belong to.

A slot is a lock on a file. It ends with the processes that hold it, however those end.
"""

import contextlib
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefect.logging import get_run_logger

from contract.environment import GPU_SLOTS, SLOTS_FOLDER, VISIBLE_GPUS
from contract.errors import FlowersError
from tasks.locks import try_lock

_CPU = "cpu-"
"""Beginning of the names of slots that are no GPUs."""

POLL_SECONDS = 0.5

NOTICE_SECONDS = 2.0
"""Time after which the log says that a run waits."""


class GpuSlotsError(FlowersError):
    """A stage cannot have the slots that it needs."""


@contextmanager
def hold_slots(num_processes: int, has_work: Callable[[], bool] = lambda: True) -> Iterator[dict[str, str]]:
    """Hold one GPU for each process of a stage inside the block; wait until so many are free.

    Without a GPU the processes share the machine's cores, and one slot. The stage inherits the locks, because it may
    outlive its task for the moment in which it saves its work.

    Args:
        num_processes: number of processes of the stage.
        has_work: asked once, after NOTICE_SECONDS of waiting; if the stage has nothing to compute, no slot is held.

    Yields:
        Variables for the environment of the stage, which name its GPUs.

    Raises:
        GpuSlotsError: the machine has fewer slots than that, or no folder for them.
    """
    slots, num_needed = find_slots(num_processes)
    with contextlib.ExitStack() as locks:
        names = _wait_for_slots(slots, num_needed, has_work, locks)
        # UUIDs: CUDA may number GPUs in another order than nvidia-smi.
        yield {VISIBLE_GPUS: ",".join(names)} if names and not names[0].startswith(_CPU) else {}


def find_slots(num_processes: int, parameter: str = "num_processes") -> tuple[list[str], int]:
    """Return the slots of this machine, and how many of them a stage of so many processes takes.

    Args:
        num_processes: number of processes of the stage.
        parameter: the name of that number in the error.

    Raises:
        GpuSlotsError: the machine has fewer slots than that.
    """
    gpus = find_gpus()
    num_slots = read_num_slots() or max(1, len(gpus))
    slots = gpus[:num_slots] or [f"{_CPU}{i}" for i in range(num_slots)]
    num_needed = num_processes if gpus else 1
    if num_needed > len(slots):
        raise GpuSlotsError(
            f"{parameter}={num_processes} takes as many GPUs, and this run may use {len(slots)}: lower it, or raise "
            f"{GPU_SLOTS} or {VISIBLE_GPUS}, where they leave GPUs of this machine out"
        )
    return slots, num_needed


def find_gpus() -> list[str]:
    """Return the UUIDs of the GPUs that CUDA_VISIBLE_DEVICES leaves; its numbers are those of nvidia-smi."""
    uuids, visible = _list_gpus(), os.environ.get(VISIBLE_GPUS)
    if visible is None:
        return uuids
    found = (_find_uuid(name.strip(), uuids) for name in visible.split(","))
    # As in CUDA, an unknown name hides all that follow.
    return [uuid for uuid in itertools.takewhile(lambda uuid: uuid is not None, found) if uuid]


def read_num_slots() -> int | None:
    """Return the number of slots that DDPM_GPU_SLOTS sets; None where it is unset.

    Raises:
        GpuSlotsError: it is not a number from 1.
    """
    number = os.environ.get(GPU_SLOTS)
    if not number:
        return None
    if not number.isdecimal() or int(number) < 1:
        raise GpuSlotsError(f"{GPU_SLOTS} must be a number from 1, got {number!r}")
    return int(number)


def _list_gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        raise GpuSlotsError("nvidia-smi does not answer within a minute: the driver or a GPU is out of order") from None
    return [line for line in listed.stdout.splitlines() if line.startswith("GPU-")]  # not where it has no driver


def _find_uuid(name: str, uuids: Sequence[str]) -> str | None:
    """Return the UUID that CUDA takes the name for: a GPU's number, the beginning of a UUID, or a part of a GPU."""
    if name.isdecimal():
        return uuids[int(name)] if int(name) < len(uuids) else None
    if name.startswith("MIG-"):
        return name
    return next((uuid for uuid in uuids if name and uuid.startswith(name)), None)


def _wait_for_slots(
    slots: Sequence[str], number: int, has_work: Callable[[], bool], locks: contextlib.ExitStack
) -> list[str]:
    """Lock this number of slots and return their names; lock none if the stage has nothing to compute."""
    started, is_noticed = time.monotonic(), False
    with contextlib.closing(_lock_slots(slots, number, locks)) as tries:
        while len(names := next(tries)) < number:
            if not is_noticed and time.monotonic() - started > NOTICE_SECONDS:
                if not has_work():
                    locks.close()
                    return []
                is_noticed = True
                get_run_logger().info("Waiting for a free slot: other runs compute on %s", ", ".join(slots))
            time.sleep(POLL_SECONDS)
    if is_noticed:
        get_run_logger().info("Got a slot: %s", ", ".join(names))
    return names


def _lock_slots(slots: Sequence[str], number: int, locks: contextlib.ExitStack) -> Generator[list[str], None, None]:
    """Try to lock this number of slots, and yield the names of the locked ones after each try, without end.

    A run that needs several slots reserves all that it may take, so that runs on one do not overtake it, and keeps each
    that becomes free. Reservations are made in one order, so that no two runs wait for each other.
    """
    folder, names = make_folder(), list[str]()
    files = {name: locks.enter_context((folder / name).open("w")) for name in slots}
    with contextlib.ExitStack() as reservations:
        for name in sorted(slots) if number > 1 else ():
            reservation = reservations.enter_context((folder / f"reserved-{name}").open("w"))
            while not try_lock(reservation):
                yield names
        while True:
            for name in slots:
                with (folder / f"reserved-{name}").open("w") as reservation:
                    may_take = number > 1 or try_lock(reservation)
                    if may_take and len(names) < number and name not in names and try_lock(files[name]):
                        os.set_inheritable(files[name].fileno(), True)
                        names.append(name)
            yield names


def make_folder() -> Path:
    """Return the folder of lock files: the same for a service and a terminal, whose TMPDIR and XDG variables differ."""
    try:
        if (named := os.environ.get(SLOTS_FOLDER)) is None:
            folder = find_home() / ".cache" / "flowers-ddpm" / "slots" / socket.gethostname()
        else:
            folder = Path(named)
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        raise GpuSlotsError(f"there is no folder for the locks of GPUs ({error}): name one in {SLOTS_FOLDER}") from None
    return folder


def find_home() -> Path:
    """Return the user's home folder as the system knows it; that of HOME for an id that it does not know."""
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path.home()
