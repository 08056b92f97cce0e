"""Variants timed in turn, each in its own process, so that none profits from the settings or memory of another."""

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch

from bench.machine import peak_memory_gib, synchronize

Variant = Callable[[], object]
Builder = Callable[[], Variant]


@dataclass
class Timings:
    """What came of the turns."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """of each variant in each round"""
    peak_memory_gib: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    """variants for which a package is missing, and which"""

    def ratio(self, name: str, other: str) -> float:
        """How many times as long `name` takes: the median of the rounds' ratios."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return statistics.median(one / two for one, two in pairs)

    def median(self, name: str) -> float:
        """Median seconds of a variant."""
        return statistics.median(self.seconds[name])


def timed_in_turn(builders: Mapping[str, Builder], num_rounds: int, device: torch.device) -> Timings:
    """Time each variant once a round; in turn, so that a drift of the machine's speed touches all alike.

    Args:
        builders: each builds a variant, in that variant's own process; functions of a module, or partials of them.
        num_rounds: measurements of each variant. Each follows one that warms up and is left out.
        device: which is waited for.

    Raises:
        RuntimeError: a variant's process ended, or its variant raised; an ImportError while building leaves it out.
    """
    timings = Timings()
    workers: dict[str, _Worker] = {}
    try:
        for name, build in builders.items():
            worker = _Worker(name, build, device)
            workers[name] = worker
            missing = worker.answer()
            if missing is not None:
                timings.left_out[name] = str(missing)
                workers.pop(name).close()
        for _ in range(num_rounds):
            for name, worker in workers.items():
                seconds, timings.peak_memory_gib[name] = worker.turn()
                timings.seconds.setdefault(name, []).append(seconds)
    finally:
        for worker in workers.values():
            worker.close()
    return timings


class _Worker:
    """A variant in its process."""

    def __init__(self, name: str, build: Builder, device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")  # a forked child could not use a GPU
        self._name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, build, device), daemon=True)
        self._process.start()
        theirs.close()

    def turn(self) -> tuple[float, float]:
        """Seconds of one measurement, and the most memory so far."""
        self._connection.send("turn")
        return self.answer()  # type: ignore[return-value]

    def answer(self) -> object:
        """The next message; None stands for "built", words for a missing package."""
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"the process of {self._name!r} ended with status {self._process.exitcode}; "
                "its message stands above, or memory ran out: choose a smaller batch, or leave it out"
            ) from None

    def close(self) -> None:
        self._connection.close()
        self._process.join()


def _work(connection: Connection, build: Builder, device: torch.device) -> None:
    """What a variant's process does: build, then measure each time it is asked."""
    try:
        variant = build()
    except ImportError as error:
        connection.send(str(error))
        return
    connection.send(None)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send((_measured(variant, device), peak_memory_gib(device)))


def _measured(variant: Variant, device: torch.device) -> float:
    variant()
    synchronize(device)
    started = time.perf_counter()
    variant()
    synchronize(device)
    seconds = time.perf_counter() - started
    _give_memory_back(device)
    return seconds


def _give_memory_back(device: torch.device) -> None:
    """To the system, so that there is room for the variants whose turn comes next."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        ctypes.CDLL(None).malloc_trim(0)
