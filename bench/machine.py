"""What the measurements share: the machine's own limits, and variants timed in turn."""

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from ddpm.devices import resolve_precision

SIDE = {"cpu": 4096, "cuda": 8192}
"""Of the square matrices whose product is the ceiling."""


def described(device: torch.device) -> str:
    """The hardware and torch's version, for the head of a table."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 (Linux alone has it, and so it reads)
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        hardware = f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{hardware}; torch {torch.__version__}"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_ceiling(device: torch.device) -> float:
    """Operations a second of a large matrix product in the precision that "auto" means here; the best of several."""
    dtype = torch.bfloat16 if resolve_precision("auto", device) == "bfloat16" else torch.float32
    side = SIDE[device.type]
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(4 if device.type == "cpu" else 30):
        synchronize(device)
        started = time.perf_counter()
        one @ other
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2.0 * side**3 / min(seconds)


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that was in use: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed_in_turn(
    variants: Mapping[str, Callable[[], object]], num_rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each variant in each round; in turn, so that a drift of the machine's speed touches all alike.

    The first round warms up, and is left out.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(num_rounds + 1):
        for name, variant in variants.items():
            synchronize(device)
            started = time.perf_counter()
            variant()
            synchronize(device)
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(numerators, denominators, strict=True))
