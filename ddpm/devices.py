"""Choices that depend on the device: precision, compilation, and the batch that its memory holds."""

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, get_args

import torch
from torch import nn
from torch.utils._triton import has_triton

from ddpm.config import Compilation, Precision
from ddpm.distributed import local_rank

# Option numbers from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

Module = TypeVar("Module", bound=nn.Module)


def best_device() -> torch.device:
    """Return the GPU of this process where there is one, otherwise the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def prepare_best_device() -> torch.device:
    """Return the best device and set this process up for long work on it: for programs, not for libraries."""
    device = best_device()
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True  # shapes stay the same from step to step
        torch.backends.cudnn.benchmark_limit = 0  # all algorithms, not the first ten
        # Older releases need it, before their first product, for deterministic algorithms.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device


def keep_freed_memory() -> None:
    """Let this process keep the memory that its tensors free, for the next ones.

    glibc gives large blocks back to the system at once, and the system clears each page again at every step: a tenth of
    the training time on a CPU. With any other C library this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # take every block from the heap
        mallopt(_M_TRIM_THRESHOLD, -1)  # and never shrink the heap


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Return `precision`, with "auto" resolved: bfloat16 if the device has it in hardware, else float32.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(get_args(Precision))}")
    if precision == "auto":
        return "bfloat16" if _has_fast_bfloat16(device) else "float32"
    return precision


@contextmanager
def float32_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run the block with float32 matrix products, backward passes included, exact or in TF32 as `precision` says.

    Raises:
        ValueError: the precision is unknown.
    """
    allowed = resolve_precision(precision, device) != "float32"
    before = _is_tf32_allowed()
    _allow_tf32(allowed, allowed)
    try:
        yield
    finally:
        _allow_tf32(*before)


@contextmanager
def deterministic_algorithms(is_enabled: bool, device: torch.device) -> Iterator[None]:
    """Run the block with algorithms that give the same bits each time on a GPU, if `is_enabled`.

    PyTorch and cuDNN then avoid algorithms that add in random order, and cuDNN chooses without timing them.

    Raises:
        RuntimeError: inside the block, by an operation that has no such algorithm.
    """
    if device.type != "cuda" or not is_enabled:
        yield
        return
    cudnn = torch.backends.cudnn
    is_on = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    before = cudnn.benchmark, cudnn.deterministic
    torch.use_deterministic_algorithms(True)  # torch.compile's, too
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_on, warn_only=only_warns)
        cudnn.benchmark, cudnn.deterministic = before


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context for forward passes: products in bfloat16 if `precision` says so, sums and norms in float32.

    Raises:
        ValueError: the precision is unknown.
    """
    enabled = resolve_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run the block under `float32_products` and `autocast`, for work without a backward pass.

    Raises:
        ValueError: the precision is unknown.
    """
    with float32_products(precision, device), autocast(precision, device):
        yield


@contextmanager
def drawing(network: nn.Module, precision: Precision, device: torch.device) -> Iterator[None]:
    """Run the block under `arithmetic` and without gradients, for many calls of `network`.

    Autocast keeps its casts of the weights from call to call, but only for weights that require gradients: inside the
    block those of `network` do, and afterwards the flags are restored.

    Raises:
        ValueError: the precision is unknown.
    """
    before = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    with torch.no_grad(), arithmetic(precision, device):
        network.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, requires_grad in before:
                parameter.requires_grad_(requires_grad)


def compile_network(network: Module, compilation: Compilation, device: torch.device) -> Module:
    """Return the network compiled by torch.compile; it shares its weights with `network`.

    Args:
        network: the network to compile.
        compilation: a mode of torch.compile, "off", or "auto": "default" on a GPU with Triton and a C compiler, "off"
            on a CPU, where minutes of compilation are seldom earned back.
        device: the device it will run on.

    Raises:
        ValueError: the mode is unknown.
    """
    if compilation not in get_args(Compilation):
        raise ValueError(f"unknown compilation {compilation!r}; choose one of {', '.join(get_args(Compilation))}")
    if compilation == "auto":
        compilation = "default" if _can_compile(device) else "off"
    if compilation == "off":
        return network
    if compilation == "default":
        # The input of a norm's backward pass is read eight times, and cheaper to compute again than to store.
        return torch.compile(network, dynamic=False, options={"realize_reads_threshold": 8})  # type: ignore[return-value]
    return torch.compile(network, mode=compilation, dynamic=False)  # type: ignore[return-value]


def largest_batch_size(attempt: Callable[[int], object], largest: int) -> int:
    """Return the first of `largest`, half of it, a quarter … for which `attempt` does not run out of GPU memory.

    Args:
        attempt: works on a batch of the given size.
        largest: at least 1.

    Raises:
        torch.OutOfMemoryError: a single image does not fit.
    """
    size = largest
    while not _has_room(attempt, size):
        # Not in the error handler: the traceback keeps the tensors that did not fit alive.
        torch.cuda.empty_cache()
        size = (size + 1) // 2
    return size


def fits_on(device: torch.device, num_bytes: int) -> bool:
    """Return whether `num_bytes` fit: on a GPU into half of its free memory; a CPU maps files of any size."""
    if device.type != "cuda":
        return True
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return num_bytes <= free_bytes // 2


def _has_room(attempt: Callable[[int], object], size: int) -> bool:
    try:
        attempt(size)
    except torch.OutOfMemoryError:
        if size == 1:
            raise
        return False
    return True


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Emulated bfloat16 is slower than float32: ask for the instructions.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def _can_compile(device: torch.device) -> bool:
    has_compiler = any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
    return device.type == "cuda" and has_triton() and has_compiler


def _is_tf32_allowed() -> tuple[bool, bool]:
    """Return whether matrix products and convolutions may use TF32; reading `fp32_precision` never raises."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32", torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def _allow_tf32(in_products: bool, in_convolutions: bool) -> None:
    # PyTorch keeps two records of this. Setting `fp32_precision` changes one of them; torch.compile reads the other in
    # mode "max-autotune" and then raises an error (2.11 to 2.14). Setting `allow_tf32` changes both.
    torch.backends.cuda.matmul.allow_tf32 = in_products
    torch.backends.cudnn.allow_tf32 = in_convolutions
