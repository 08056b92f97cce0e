"""Time variants in turn: on a GPU all in this process, on a CPU each in its own process.

A CPU's variants differ in how their process deals with memory, so that none may profit from the settings of another. On
a GPU a process of its own would only have each compile again.
"""

import argparse
import gc
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import psutil
import torch

from bench.machine import LeftOutError, allocated_gib, peak_memory_gib, reset_peak_memory, synchronize

Variant = Callable[[], object]
Builder = Callable[[], Variant]
Result = TypeVar("Result")

MINUTES = {"cpu": 5.0, "cuda": math.inf}
"""Default minutes for a measurement."""

# Parts of that time. The rest is for imports before, the machine's ceiling after, and a round slower than the others.
_SHARE_OF_BUILDING, _SHARE_OF_ALL = 0.5, 0.9

# Memory that must be free, in parts of the largest peak so far: for a variant to come as much as that and some more;
# for the turns less, since a process keeps more than half of its peak between them (weights, their moments and average,
# and what the C library does not give back).
_ROOM_FOR_NEXT, _ROOM_FOR_TURNS = 1.25, 0.5


@dataclass
class Timings:
    """Seconds and memory of the variants, and which are missing."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """seconds of each variant in each round"""
    peak_memory_gib: dict[str, float] = field(default_factory=dict)
    """on a CPU the process's; on a GPU the last turn's, less what the other variants keep between theirs"""
    left_out: dict[str, str] = field(default_factory=dict)
    """variants that were not timed, and why"""

    def ratio(self, name: str, other: str) -> float:
        """Return the ratio of the times of two variants: the median over the rounds."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return statistics.median(one / two for one, two in pairs)

    def median(self, name: str) -> float:
        """Return the median seconds of a variant."""
        return statistics.median(self.seconds[name])


def add_turn_arguments(parser: argparse.ArgumentParser, num_rounds: int) -> None:
    """Add --rounds and --minutes, which `time_in_turn` takes."""
    parser.add_argument(
        "--rounds", type=int, default=num_rounds, help=f"rounds, of which the median counts (default {num_rounds})"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="begin no further round that would not end in this time (default 5 on a CPU, no limit on a GPU)",
    )


def time_in_turn(
    builders: Mapping[str, Builder], device: torch.device, num_rounds: int, num_minutes: float | None = None
) -> Timings:
    """Time each variant once a round; in turn, so that a drift of the machine's speed touches all alike.

    Each is built and warmed up once, before the first round. What goes on is printed.

    Args:
        builders: each builds a variant, perhaps in another process: functions of a module, or partials of them. The
            first is there in any case; others are left out if the time is half over before they are built.
        device: which is waited for.
        num_rounds: measurements of each variant.
        num_minutes: after the first round none begins that would not end within this time; None stands for MINUTES.

    Raises:
        RuntimeError: a variant's process was killed.
    """
    clock = _Clock(MINUTES[device.type] if num_minutes is None else num_minutes)
    timings = Timings()
    longest_round = 0.0
    with ExitStack() as stack:
        places = _build_all(builders, device, clock, timings.left_out, stack)
        for number in range(1, num_rounds + 1):
            if number > 1 and not clock.has_time(longest_round, _SHARE_OF_ALL):
                print(f"{number - 1} of {num_rounds} rounds: another would not end within {clock}", flush=True)
                break
            began = time.perf_counter()
            for name, place in places.items():
                seconds, timings.peak_memory_gib[name] = place.take_turn()
                timings.seconds.setdefault(name, []).append(seconds)
                print(f"round {number} of {num_rounds}: {name}, {seconds:.2f} s", flush=True)
            longest_round = max(longest_round, time.perf_counter() - began)
    return timings


class Built:
    """A variant that is built and warm, in the process that builds it."""

    def __init__(self, build: Builder, device: torch.device) -> None:
        before = allocated_gib(device)
        torch.backends.cudnn.benchmark = False  # as torch has it, whatever an earlier variant has chosen
        self._device = device
        self._variant = build()
        self._variant()
        synchronize(device)
        gc.collect()
        self._benchmark = torch.backends.cudnn.benchmark
        self._kept_gib = allocated_gib(device) - before

    def take_turn(self) -> tuple[float, float]:
        """Return the seconds of a turn, and the most memory that it took, in GiB."""
        torch.backends.cudnn.benchmark = self._benchmark
        kept_by_others = allocated_gib(self._device) - self._kept_gib
        reset_peak_memory(self._device)
        synchronize(self._device)
        started = time.perf_counter()
        self._variant()
        synchronize(self._device)
        return time.perf_counter() - started, peak_memory_gib(self._device) - kept_by_others


class InProcess:
    """A variant in a process of its own, which stays from turn to turn unless it is ended."""

    def __init__(self, name: str, build: Builder, device: torch.device) -> None:
        self._name, self._build, self._device = name, build, device
        self._executor: ProcessPoolExecutor | None = None
        self.is_kept = True
        self.peak_memory_gib = self._start()

    def take_turn(self) -> tuple[float, float]:
        """Return the seconds of a turn, and the most memory of the process so far, in GiB."""
        if self._executor is None:
            self._start()
        turn = self._ask(_take_turn)
        if not self.is_kept:
            self.end()
        return turn

    def end(self) -> None:
        """End the process; the next turn starts another."""
        if self._executor is not None:
            self._executor.shutdown()
        self._executor = None

    def _start(self) -> float:
        # Not forked: a fork has none of the threads that torch may have started.
        self._executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return self._ask(_build, self._build, self._device)
        except BaseException:
            self.end()
            raise

    def _ask(self, function: Callable[..., Result], *arguments: object) -> Result:
        assert self._executor is not None
        try:
            return self._executor.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise RuntimeError(
                f"the process of {self._name!r} was ended, likely for want of memory: choose a smaller batch, or leave "
                "it out"
            ) from None


_built_here: list[Built] = []
"""Variant of this process, if InProcess started it."""


def _build(build: Builder, device: torch.device) -> float:
    _built_here.append(Built(build, device))
    return peak_memory_gib(device)


def _take_turn() -> tuple[float, float]:
    return _built_here[0].take_turn()


class _Clock:
    """Budget of time for a measurement."""

    def __init__(self, num_minutes: float) -> None:
        self._num_minutes = num_minutes
        self._started = time.perf_counter()

    def has_time(self, seconds: float, share: float) -> bool:
        """Return whether that many more seconds still lie within `share` of the time."""
        return time.perf_counter() - self._started + seconds <= share * 60.0 * self._num_minutes

    def __str__(self) -> str:
        return f"--minutes {self._num_minutes:g}"


def _build_all(
    builders: Mapping[str, Builder], device: torch.device, clock: _Clock, left_out: dict[str, str], stack: ExitStack
) -> dict[str, Built | InProcess]:
    """Return the variants by name; those that are left out go into `left_out`, and the stack ends the processes."""
    places: dict[str, Built | InProcess] = {}
    largest_gib = 0.0
    for number, (name, build) in enumerate(builders.items(), start=1):
        began = time.perf_counter()
        try:
            if places and not clock.has_time(0.0, _SHARE_OF_BUILDING):
                raise LeftOutError(f"half of {clock} was over before it could be built")
            print(f"building {number} of {len(builders)}: {name}", flush=True)
            place = Built(build, device) if device.type == "cuda" else InProcess(name, build, device)
        except (ImportError, LeftOutError) as error:
            left_out[name] = str(error)
            print(f"left out: {name} ({error})", flush=True)
            continue
        print(f"  warm after {time.perf_counter() - began:.1f} s", flush=True)
        places[name] = place
        if isinstance(place, InProcess):
            stack.callback(place.end)
            largest_gib = max(largest_gib, place.peak_memory_gib)
            room_gib = largest_gib * (_ROOM_FOR_TURNS if number == len(builders) else _ROOM_FOR_NEXT)
            if psutil.virtual_memory().available / 2**30 < room_gib:
                print("  too little memory is left to keep its process: each turn builds it anew", flush=True)
                place.is_kept = False
                place.end()
    return places
