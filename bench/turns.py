"""Variants timed in turn, each in its own process, so that none profits from the settings or memory of another."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

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

    Each turn has a process of its own, so that no variant profits from the settings of another, or wants for the memory
    that another keeps.

    Args:
        builders: each builds a variant, in the process of its turn; functions of a module, or partials of them.
        num_rounds: measurements of each variant. Each follows one that warms up and is left out.
        device: which is waited for.

    Raises:
        RuntimeError: a variant's process was killed.
    """
    timings = Timings()
    for _ in range(num_rounds):
        for name, build in builders.items():
            if name in timings.left_out:
                continue
            try:
                seconds, peak = _in_its_own_process(name, build, device)
            except ImportError as error:
                timings.left_out[name] = str(error)
            else:
                timings.seconds.setdefault(name, []).append(seconds)
                timings.peak_memory_gib[name] = peak
    return timings


def _in_its_own_process(name: str, build: Builder, device: torch.device) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")  # a forked child could not use a GPU
    try:
        with ProcessPoolExecutor(1, context) as executor:
            return executor.submit(_turn, build, device).result()
    except BrokenProcessPool:
        raise RuntimeError(
            f"the process of {name!r} was ended, likely for want of memory: choose a smaller batch, or leave it out"
        ) from None


def _turn(build: Builder, device: torch.device) -> tuple[float, float]:
    """Seconds of a variant that is warm, and the most memory that it took."""
    variant = build()
    variant()
    synchronize(device)
    started = time.perf_counter()
    variant()
    synchronize(device)
    return time.perf_counter() - started, peak_memory_gib(device)
