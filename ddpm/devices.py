"""What suits a device: the precision of its arithmetic, compilation, and the batch that its memory holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar, get_args

import torch
from torch import nn

Precision = Literal["auto", "float32", "tensorfloat32", "bfloat16"]
Compilation = Literal["auto", "off", "default", "reduce-overhead", "max-autotune"]

Module = TypeVar("Module", bound=nn.Module)


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What "auto" means on `device`: bfloat16 where the hardware has it, else float32.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(get_args(Precision))}")
    if precision == "auto":
        return "bfloat16" if _has_fast_bfloat16(device) else "float32"
    return precision


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Matrix products and convolutions inside the block in `precision`; sums and normalisations stay in float32.

    Raises:
        ValueError: the precision is unknown.
    """
    resolved = resolve_precision(precision, device)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if resolved != "bfloat16":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = resolved == "tensorfloat32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=resolved == "bfloat16"):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def compiled(network: Module, compilation: Compilation, device: torch.device) -> Module:
    """The network as torch.compile makes it; weights stay shared with `network`.

    Args:
        network: what to compile.
        compilation: a mode of torch.compile, "off", or "auto": "default" on a GPU that Triton supports, "off" on a CPU,
            where minutes of compilation are seldom earned back.
        device: where it will run.

    Raises:
        ValueError: the mode is unknown.
    """
    if compilation not in get_args(Compilation):
        raise ValueError(f"unknown compilation {compilation!r}; choose one of {', '.join(get_args(Compilation))}")
    if compilation == "auto":
        compilation = "default" if _has_triton(device) else "off"
    if compilation == "off":
        return network
    return torch.compile(network, mode=compilation)  # type: ignore[return-value]


def largest_batch_size(attempt: Callable[[int], object], largest: int) -> int:
    """The first of `largest`, a half of it, a quarter … for which `attempt` does not run out of the GPU's memory.

    Args:
        attempt: works on a batch of the given size.
        largest: at least 1.

    Raises:
        torch.OutOfMemoryError: a single image is too much.
    """
    size = largest
    while True:
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            torch.cuda.empty_cache()
            size = (size + 1) // 2
        else:
            return size


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Emulated bfloat16 is slower than float32: ask for the instructions.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def _has_triton(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)
