"""What suits a device: the precision of its arithmetic, compilation, and the batch that its memory holds."""

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

# Of malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

Module = TypeVar("Module", bound=nn.Module)


def best_device() -> torch.device:
    """Return the GPU of this process where there is one, otherwise the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def prepare_best_device() -> torch.device:
    """Return the best device, with this process set up for long work on it: for programs, not for libraries."""
    device = best_device()
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True  # shapes stay the same from step to step
        torch.backends.cudnn.benchmark_limit = 0  # all algorithms, not the first ten
        # Older releases ask for it, before their first product, where algorithms are to be deterministic.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return device


def keep_freed_memory() -> None:
    """Let this process keep the memory that its tensors free, for the next ones.

    glibc gives large blocks back to the system at once, which then clears each page anew at every step: a tenth of the
    time of training on a CPU. Where the C library is another, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)  # no block apart from the heap
        mallopt(_M_TRIM_THRESHOLD, -1)  # and the heap does not shrink


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
def float32_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Products of float32 matrices inside the block, backward passes included, as `precision` says: exact or in TF32.

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
def deterministic_algorithms(are_wanted: bool, device: torch.device) -> Iterator[None]:
    """Work inside the block that gives the same bits each time on a GPU, where that is wanted.

    PyTorch and cuDNN then leave out algorithms that add in an order of chance, and cuDNN chooses without timing them.

    Raises:
        RuntimeError: inside the block, by an operation that has no such algorithm.
    """
    if device.type != "cuda" or not are_wanted:
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
    """The context of forward passes: products in bfloat16 where `precision` says so, sums and norms in float32.

    Raises:
        ValueError: the precision is unknown.
    """
    enabled = resolve_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """`float32_products` and `autocast`, for work without a backward pass.

    Raises:
        ValueError: the precision is unknown.
    """
    with float32_products(precision, device), autocast(precision, device):
        yield


@contextmanager
def drawing(network: nn.Module, precision: Precision, device: torch.device) -> Iterator[None]:
    """`arithmetic` without gradients, for a block that calls `network` again and again.

    Autocast keeps the cast weights from call to call, but only of weights that could be trained: inside the block
    those of `network` are marked as such, and afterwards as they were before.

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


def compiled(network: Module, compilation: Compilation, device: torch.device) -> Module:
    """The network as torch.compile makes it; weights stay shared with `network`.

    Args:
        network: what to compile.
        compilation: a mode of torch.compile, "off", or "auto": "default" on a GPU where Triton and a C compiler are
            there, "off" on a CPU, where minutes of compilation are seldom earned back.
        device: where it will run.

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
    """The first of `largest`, a half of it, a quarter … for which `attempt` does not run out of the GPU's memory.

    Args:
        attempt: works on a batch of the given size.
        largest: at least 1.

    Raises:
        torch.OutOfMemoryError: a single image is too much.
    """
    size = largest
    while not _has_room(attempt, size):
        # Not in the handler of the error, whose traceback holds what did not fit.
        torch.cuda.empty_cache()
        size = (size + 1) // 2
    return size


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
    """Whether products of matrices and convolutions may use TF32; asked in the way that no setting can forbid."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32", torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def _allow_tf32(in_products: bool, in_convolutions: bool) -> None:
    # PyTorch keeps two records of this. `fp32_precision` would change one of them, and torch.compile, which reads the
    # other in mode "max-autotune", then raises an error (2.11 to 2.14); these change both alike.
    torch.backends.cuda.matmul.allow_tf32 = in_products
    torch.backends.cudnn.allow_tf32 = in_convolutions
