"""How fast a training step and a network call are, beside other arrangements of the same work and beside diffusers."""

from collections.abc import Callable, Mapping
from functools import partial
from unittest.mock import patch

import torch

from bench.gpu.session import MODES, Session
from bench.gpu.timing import Step, time_in_turn
from bench.machine import LeftOutError, peak_memory_gib, require_bfloat16
from bench.networks import Setting, diffusers_loop, diffusers_pipeline, flops_per_image
from ddpm import ImageNoise, TrainingConfig, UNet, sample
from ddpm.devices import Compilation, compiled, drawing
from ddpm.images import to_pixels
from ddpm.training import train

_NUM_WARM_UP_STEPS = 5
_SECONDS_TO_COMPILE = 60.0
"""At the published size: what must be left for another compilation to begin."""


def attend_by_torch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return attention as PyTorch chooses its kernel."""
    return torch.nn.functional.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]


PARTS: dict[str, tuple[str, Callable[..., object]]] = {
    "weights cast one by one": ("ddpm.training_step.may_halve", lambda *_: False),
    "upsampling after doubling": ("ddpm.operations.is_doubled_first", lambda *_: True),
    "torch's norms": ("ddpm.operations.normalize_channels_last", lambda x, norm: norm(x)),
    "torch's attention at 512 channels": ("ddpm.operations.attend_by_products", attend_by_torch),
    "separate products": ("ddpm.operations.apply_joined", lambda x, layers: tuple(layer(x) for layer in layers)),
}
"""Parts of the step in the form that they had before they were arranged for a GPU, the one thought dearest first."""


def time_training(session: Session) -> None:
    """Time the step at the published batch size: recorded, compiled, plain, and diffusers' own."""
    batch_size = session.size.batch_size
    builders: dict[str, Callable[[], Step]] = {
        f"this project, {name}": partial(build_step, session, batch_size, mode)
        for mode, name in zip(MODES, ("recorded", "compiled", "plain"), strict=True)
    }
    for name, is_bfloat16 in (("diffusers, bf16", True), ("diffusers as it ships, fp32", False)):
        builders[name] = partial(diffusers_loop, _setting(session, batch_size), is_bfloat16)
    report_steps(session, batch_size, builders)


def time_larger_batches(session: Session) -> None:
    """Time the step, as the published run takes it, at larger batches."""
    for batch_size in session.size.larger_batches:
        report_steps(session, batch_size, {
            f"this project, batch {batch_size}": partial(build_step, session, batch_size, session.mode)
        })  # fmt: skip


def time_parts(session: Session) -> None:
    """Time the step with one of its parts switched off at a time, as long as there is time to compile it anew."""
    batch_size = session.size.batch_size
    for name, (target, replacement) in PARTS.items():
        if session.device.type == "cuda" and session.deadline.left() < _SECONDS_TO_COMPILE:
            session.report.say(f"left out, for want of time: the step with {name}")
            continue
        if session.device.type == "cuda":
            torch._dynamo.reset()  # no graph is to be taken for that of another form

        def build(target: str = target, replacement: Callable[..., object] = replacement) -> Step:
            with patch(target, replacement):
                step = build_step(session, batch_size, session.mode)

            def switched_off() -> None:
                with patch(target, replacement):  # looked up anew where nothing is recorded
                    step()

            return switched_off

        report_steps(session, batch_size, {"the whole step": partial(build_step, session, batch_size, session.mode),
                                           f"with {name}": build})  # fmt: skip


def time_sampling(session: Session) -> None:
    """Time DDIM with few calls, of this project and of diffusers' pipeline, on images drawn together."""
    size = session.size
    setting = _setting(session, size.sample_batch)
    builders: dict[str, Callable[[], Step]] = {
        "this project, compiled": partial(build_drawing, session, "default"),
        "this project, plain": partial(build_drawing, session, "off"),
        "diffusers, bf16": partial(diffusers_pipeline, setting, size.few_calls, bfloat16=True),
        "diffusers as it ships, fp32": partial(diffusers_pipeline, setting, size.few_calls, bfloat16=False),
    }
    steps = build_all(session, builders, num_warm_up_steps=1)
    seconds = time_in_turn(steps, 1, size.num_rounds, session.device)
    rows = {
        name: {"seconds": round(value, 4), "images_per_second": round(size.sample_batch / value, 1)}
        for name, value in seconds.items()
    }
    session.report.add("sample", {"sampler": f"ddim, {size.few_calls} calls", "images": size.sample_batch} | rows)
    session.report.say("\n".join(f"{name}: {row}" for name, row in rows.items()))


def report_steps(session: Session, batch_size: int, builders: Mapping[str, Callable[[], Step]]) -> None:
    """Build and time training steps in turn, and add them to the report's table."""
    size = session.size
    steps = build_all(session, builders, _NUM_WARM_UP_STEPS)
    seconds = time_in_turn(steps, size.steps_a_turn, size.num_rounds, session.device)
    flops = batch_size * flops_per_image(_setting(session, batch_size))
    ceiling = 1e12 * session.report.values["machine"]["matrix_tflops"]
    rows: dict[str, dict[str, float]] = session.report.values.get("train", {})
    for name, value in seconds.items():
        rows[name] = {
            "ms": round(1e3 * value, 3),
            "images_per_second": round(batch_size / value, 1),
            "of_ceiling": round(flops / value / ceiling, 3),
            "peak_gib": round(peak_memory_gib(session.device), 2),
        }
        session.report.say(f"{name}: {rows[name]}")
    session.report.add("train", rows)


def build_all(session: Session, builders: Mapping[str, Callable[[], Step]], num_warm_up_steps: int) -> dict[str, Step]:
    """Return the steps, warm; what cannot be built or run here is left out, with a line that says why."""
    steps = {}
    for name, build in builders.items():
        try:
            if "bf16" in name:
                require_bfloat16(session.device)
            step = build()
            for _ in range(num_warm_up_steps):
                step()
        except (ImportError, LeftOutError, RuntimeError) as error:
            session.report.say(f"left out: {name} ({type(error).__name__}: {error})")
            continue
        steps[name] = step
    return steps


def build_step(session: Session, batch_size: int, mode: Compilation) -> Step:
    """Return a function that takes one training step of the published network."""
    config = TrainingConfig(num_steps=10**9, compilation=mode)
    events = train(session.start(config), session.images(batch_size), session.diffusion, config)
    return lambda: next(events)


def build_drawing(session: Session, mode: Compilation) -> Step:
    """Return a function that draws a batch with random weights."""
    torch.manual_seed(0)
    unet = UNet(session.size.unet).to(device=session.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = compiled(unet.eval(), mode, session.device)
    shape = (session.size.unet.image_channels, session.size.image_size, session.size.image_size)

    def draw() -> None:
        noise = ImageNoise(0, range(session.size.sample_batch), shape, session.device)
        with drawing(unet, "auto", session.device):
            to_pixels(sample("ddim", network, session.diffusion, noise, session.size.few_calls)).cpu()

    return draw


def _setting(session: Session, batch_size: int) -> Setting:
    return Setting(batch_size, session.size.image_size, session.size.unet.widths, session.device)
