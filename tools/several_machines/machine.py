"""A machine made of Linux namespaces: its own network, processes, host name and mounts.

Its disk is /srv; the rest is read-only, and holds the software alone.
"""

import os
import shlex
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ADDRESSES = {"box": "10.77.0.1", "gpu": "10.77.0.2"}

_NAMESPACES = ["--net", "--mount", "--pid", "--uts", "--ipc"]
_SHOWN_LINES = 12

_START = """
set -e
hostname "$NAME"
mount --bind "$DISK" /srv
mount --bind "$DISK/hosts" /etc/hosts
mount --bind "$DISK/resolv.conf" "$(realpath /etc/resolv.conf)"
findmnt -rno TARGET -t ext4,xfs,btrfs,overlay,tmpfs | grep -vE '^/(srv|dev|proc|sys|etc/hosts|etc/resolv.conf)' |
    while read -r place; do mount -o remount,bind,ro "$place" 2>/dev/null || [ "$place" != / ]; done
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
trap '' CHLD  # orphans are reaped
echo ready
exec sleep infinity
"""


class NotShownError(Exception):
    """A claim was not shown; the message says what happened instead."""


def tell(text: str) -> None:
    """Print a line of the transcript."""
    print(text, flush=True)


def show(fact: str, is_true: object) -> None:
    """Print a fact that has been shown.

    Raises:
        NotShownError: it is not one.
    """
    if not is_true:
        raise NotShownError(fact)
    tell(f"  [shown] {fact}")


def wait_for(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Wait until `condition()` is true; raise NotShownError after the time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise NotShownError(f"{what}: not within {seconds:.0f} seconds")
        time.sleep(0.5)


@dataclass
class Program:
    """A program that runs in the background of a machine."""

    machine: "Machine"
    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal to the program itself: the process that was started for it waits outside of the machine."""
        for child in psutil.Process(self.process.pid).children():
            child.send_signal(number)

    def wait_until_says(self, words: str, seconds: float) -> None:
        def says() -> bool:
            if self.process.poll() is not None and words not in self.said():
                raise NotShownError(f"{self.log.stem} on {self.machine.name} ended:\n{self.said()[-3000:]}")
            return words in self.said()

        wait_for(says, f"{self.log.stem} on {self.machine.name} says {words!r}", seconds)

    def end(self, number: int, seconds: float) -> int:
        """Send a signal, wait for the end and return the status."""
        self.signal(number)
        return self.wait(seconds)

    def wait(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise NotShownError(
                f"{self.log.stem} on {self.machine.name} has not ended after {seconds:.0f} seconds"
            ) from None


class Machine:
    """Two of them see each other's addresses, and nothing else of each other."""

    def __init__(self, name: str, disk: Path, path: str) -> None:
        self.name, self.disk = name, disk
        for folder in ("home", "tmp", "logs"):
            (disk / folder).mkdir(parents=True)
        disk.chmod(0o755)
        (disk / "tmp").chmod(0o1777)
        (disk / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{address} {host}\n" for host, address in ADDRESSES.items())
        )
        (disk / "resolv.conf").write_text("")
        self.environment = {
            "PATH": path,
            "HOME": "/srv/home",
            "TMPDIR": "/srv/tmp",
            "LANG": "C.UTF-8",
            "PYTHONPATH": "/srv/flowers",  # as `pip install --editable` of this clone would have it
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
            # Outside of the home, and not to be written to here:
            "DDPM_SLOTS_FOLDER": "/srv/home/slots",
            "DVC_SITE_CACHE_DIR": "/srv/home/dvc",
        }
        self._init = subprocess.Popen(
            # However this program ends, the machine ends with it.
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "unshare",
                *_NAMESPACES,
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                _START,
            ],
            env={"PATH": os.environ["PATH"], "NAME": name, "DISK": str(disk)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._init.stdout
        if self._init.stdout.readline() != "ready\n":
            raise NotShownError(f"the machine {name} cannot be made: it takes root and the right to make namespaces")
        (child,) = psutil.Process(self._init.pid).children()
        self.pid = child.pid

    def switch_off(self) -> None:
        """End the machine's first process, and with it all others and the network."""
        self._init.kill()
        self._init.wait()

    def enter(self, command: str) -> list[str]:
        """Return the words that run a shell command in the machine."""
        folder = "/srv/flowers" if (self.disk / "flowers").is_dir() else "/srv"
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        inside = ["env", "-i", f"--chdir={folder}", *settings, "bash", "-c", command]
        return ["nsenter", f"--target={self.pid}", *_NAMESPACES, *inside]

    def run(self, command: str, *, status: int | None = 0, seconds: int = 120, quiet: bool = False) -> str:
        """Run a command as people type it and show it with the end of its output.

        Raises:
            NotShownError: it takes longer, or ends with another status.
        """
        if not quiet:
            tell(f"{self.name}$ {command}")
        bounded = f"timeout --kill-after=5 {seconds} bash -c {shlex.quote(command)}"
        done = subprocess.run(
            self.enter(bounded),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds + 30,
        )
        if not quiet:
            tell_end(done.stdout)
        if status is not None and done.returncode != status:
            if quiet:
                tell_end(done.stdout)
            raise NotShownError(f"`{command}` on {self.name} ended with {done.returncode}, not with {status}")
        return done.stdout

    @contextmanager
    def exporting(self, variables: Mapping[str, str]) -> Iterator[None]:
        """Set environment variables of all commands in the block."""
        before = self.environment
        self.environment = {**before, **variables}
        yield
        self.environment = before

    def start(self, name: str, command: str, shown: str | None = None) -> Program:
        """Start a program in the background; its output goes to logs/NAME.log of the machine's disk."""
        tell(f"{self.name}$ {shown or command} &")
        log = self.disk / "logs" / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.enter(f"exec {command}"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Program(self, process, log)


def tell_end(output: str) -> None:
    """Print the last lines of a command's output."""
    lines = output.rstrip().splitlines()
    if len(lines) > _SHOWN_LINES:
        lines = [f"… ({len(lines) - _SHOWN_LINES} lines)", *lines[-_SHOWN_LINES:]]
    if lines:
        tell(textwrap.indent("\n".join(line[:200] for line in lines), "    "))


def join(machines: list[Machine]) -> None:
    """Put a cable between two machines: a veth pair whose ends lie in their networks alone."""
    one, other = machines
    subprocess.run(
        ["ip", "link", "add", "cable", "netns", str(one.pid), "type", "veth", "peer", "name", "cable", "netns",
         str(other.pid)],
        check=True,
    )  # fmt: skip
    for machine in machines:
        machine.run(f"ip address add {ADDRESSES[machine.name]}/24 dev cable && ip link set cable up", quiet=True)


def make_machines(stack: ExitStack, folder: Path, path: str) -> tuple[Machine, Machine]:
    """Return two machines with a cable between them; the stack switches them off."""
    made = []
    for name in ADDRESSES:
        made.append(Machine(name, folder / name, path))
        stack.callback(made[-1].switch_off)
    join(made)
    return made[0], made[1]
