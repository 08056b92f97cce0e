"""Time of a training step by kernel and by part, beside the prediction."""

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench.gpu.prediction import predict_step
from bench.gpu.session import Session
from bench.networks import Setting, ours

_NUM_STEPS = 5

# Words in the names of a part's kernels; the first that fits counts. A compiler names a fused kernel after all that it
# came from, convolutions included, which it does not compute.
_PARTS = {
    "attention": ("flash", "fmha", "attention", "softmax"),
    "norms, activations, sums": ("triton",),
    "convolutions": ("conv", "fprop", "dgrad", "wgrad", "cudnn", "implicit"),
    "dense layers": ("gemm", "nvjet", "cublas", "addmm", "::mm", "splitk"),
    "optimizer, averages, casts of weights": ("multi_tensor", "fused_adam", "foreach", "lerp", "lpnorm"),
    "copies": ("memcpy", "memset", "copy"),
}
_OTHER = "norms, activations, sums"


def profile_kernels(session: Session) -> None:
    """Write kernels.txt and note the milliseconds of a step by part."""
    size = session.size
    step = ours(Setting(size.batch_size, size.image_size, size.unet.widths, session.device), session.mode)
    for _ in range(5):
        step()
    is_cuda = session.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as profiler:
        for _ in range(_NUM_STEPS):
            step()
        if is_cuda:
            torch.cuda.synchronize(session.device)
    averages = profiler.key_averages()
    rows = [(each.key, _microseconds(each, is_cuda) / _NUM_STEPS, each.count / _NUM_STEPS) for each in averages]
    rows = sorted((row for row in rows if row[1] > 0.0), key=lambda row: -row[1])
    lines = [f"{microseconds:10.1f} µs {count:7.1f} x {name}" for name, microseconds, count in rows]
    (session.report.folder / "kernels.txt").write_text("\n".join([*lines, ""]))
    parts: dict[str, float] = {}
    for name, microseconds, _ in rows:
        part = part_of(name)
        parts[part] = parts.get(part, 0.0) + microseconds / 1e3
    num_kernels = sum(count for _, _, count in rows)
    measured = {part: round(milliseconds, 3) for part, milliseconds in parts.items()}
    machine = session.report.values["machine"]
    predicted = predict_step(
        size.unet,
        size.image_size,
        size.batch_size,
        1e12 * machine["matrix_tflops"],
        1e9 * machine["copied_gb_per_second"],
    )
    session.report.add("parts of a step, ms", {"measured": measured, "predicted": predicted, "kernels": num_kernels})
    session.report.say(f"{num_kernels:.0f} kernels a step; ms by part: {measured}; predicted: {predicted}")


def part_of(kernel: str) -> str:
    """Return the part of the step that a kernel belongs to, by its name."""
    lower = kernel.lower()
    return next((part for part, words in _PARTS.items() if any(word in lower for word in words)), _OTHER)


def _microseconds(average: Any, is_cuda: bool) -> float:
    return float(average.self_device_time_total if is_cuda else average.self_cpu_time_total)
