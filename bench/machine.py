"""The machine that a measurement runs on, and its limits."""

import os
import platform
import resource
import time

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
