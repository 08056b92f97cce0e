"""Card, software and PyTorch kernels of this machine."""

import platform
import shutil
import warnings
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._triton import has_triton

from bench.gpu.session import Session
from bench.gpu.timing import Stopwatch
from bench.machine import describe, matrix_ceiling
from ddpm.devices import resolve_precision

_COPIED_BYTES = {"cpu": 1 << 26, "cuda": 1 << 31}
_NUM_COPIES = 10


def inspect_machine(session: Session) -> None:
    """Note card, software, ceilings and the attention kernels that run."""
    device = session.device
    machine: dict[str, Any] = {
        "described": describe(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "triton": has_triton(),
        "compiler": shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"),
        "precision": resolve_precision("auto", device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["memory_gib"] = round(properties.total_memory / 2**30, 1)
        machine["multiprocessors"] = properties.multi_processor_count
        machine["capability"] = f"{properties.major}.{properties.minor}"
    machine["matrix_tflops"] = round(matrix_ceiling(device) / 1e12, 2)
    machine["copied_gb_per_second"] = round(copy_bandwidth(device) / 1e9, 1)
    session.report.add("machine", machine)  # other phases want the rates, whatever comes of the rest
    machine["attention"] = attention_kernels(session)
    session.report.add("machine", machine)
    session.report.say("\n".join(f"{name}: {value}" for name, value in machine.items()))


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second of a large copy, counting both reads and writes."""
    source = torch.empty(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    watch = Stopwatch(device)
    watch.start()
    for _ in range(_NUM_COPIES):
        target.copy_(source)
    watch.stop()
    return 2.0 * source.numel() * _NUM_COPIES / watch.seconds()


def attention_kernels(session: Session) -> dict[str, list[str]]:
    """Return the kernels of `scaled_dot_product_attention` that run each attention, forward and backward."""
    found = {}
    for channels, pixels in attention_shapes(session):
        names = []
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            query = torch.randn(2, 1, pixels, channels, device=session.device, dtype=torch.bfloat16)
            query.requires_grad_(True)
            try:
                with sdpa_kernel(backend), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # each kernel that does not run says why at length
                    attended = torch.nn.functional.scaled_dot_product_attention(query, query, query)
                    attended.backward(torch.randn_like(attended))  # type: ignore[no-untyped-call]
            except RuntimeError:
                continue
            names.append(backend.name.lower())
        found[f"{pixels} pixels of {channels} channels"] = names or ["math alone"]
    return found


def attention_shapes(session: Session) -> list[tuple[int, int]]:
    """Return channels and pixels of each level with attention."""
    unet, size = session.size.unet, session.size.image_size
    levels = enumerate(zip(unet.widths, unet.attention, strict=True))
    return [(width, (size >> level) ** 2) for level, (width, attends) in levels if attends]
