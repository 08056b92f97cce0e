"""The machine that a measurement runs on, and its limits."""

import os
import platform
import resource
import time

import torch

from ddpm.devices import resolve_precision

SIDE = {"cpu": 4096, "cuda": 8192}
"""Height and width of the matrices whose product is the ceiling."""


class LeftOutError(Exception):
    """A variant cannot be measured here; the message says why."""


def require_bfloat16(device: torch.device) -> None:
    """Make sure that the device has bf16 instructions.

    Raises:
        LeftOutError: it has none, and would emulate them.
    """
    if resolve_precision("auto", device) != "bfloat16":
        kind = "GPU" if device.type == "cuda" else "CPU"
        raise LeftOutError(f"this {kind} has no bf16 instructions; emulated ones would take minutes a step")


def describe(device: torch.device) -> str:
    """Return the hardware and torch's version, for the head of a table."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 (Linux alone has it, and so it reads)
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        hardware = f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{hardware}; torch {torch.__version__}"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_ceiling(device: torch.device) -> float:
    """Return the operations a second of a large matrix product in the precision of "auto"; the best of several."""
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


def allocated_gib(device: torch.device) -> float:
    """Return the memory of the GPU that tensors take now; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory_gib` on a GPU; the peak of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak of memory in use: by tensors on the GPU, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
