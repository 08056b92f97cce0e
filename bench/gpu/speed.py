"""Measure training steps and network calls, beside other arrangements of the same work and beside diffusers."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from unittest.mock import patch

import torch

from bench.gpu.report import OURS, PARTS_KEY
from bench.gpu.session import Session
from bench.gpu.timing import Step, time_in_turn
from bench.networks import Setting, diffusers_loop, diffusers_pipeline, flops_per_image, our_drawing, ours

_NUM_WARM_UP_STEPS = 5
_SECONDS_TO_COMPILE = 80.0
"""Seconds that must be left at the published size for another compilation to begin."""


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
"""Plain forms of the step's parts, by their replacement; the largest expected saving comes first."""


def time_training(session: Session) -> None:
    """Time the step at the published batch size: recorded, compiled, plain, and diffusers' own."""
    batch_size = session.size.batch_size
    setting = _setting(session, batch_size)
    builders: dict[str, Callable[[], Step]] = {OURS: partial(ours, setting, "auto")}
    if session.device.type == "cuda":  # a CPU would compile for minutes
        builders["this project, compiled"] = partial(ours, setting, "default")
    builders["this project, plain"] = partial(ours, setting, "off")
    builders["diffusers, bf16"] = lambda: with_default_convolutions(diffusers_loop(setting, bfloat16=True))
    builders["diffusers as it ships, fp32"] = lambda: with_default_convolutions(diffusers_loop(setting, bfloat16=False))
    report_steps(session, batch_size, builders)


def time_larger_batches(session: Session) -> None:
    """Time the step, as the published run takes it, at larger batches."""
    for batch_size in session.size.larger_batches:
        if not has_time_to_compile(session, f"batch {batch_size}"):
            continue
        build = partial(ours, _setting(session, batch_size), session.mode)
        report_steps(session, batch_size, {f"this project, batch {batch_size}": build})


def time_parts(session: Session) -> None:
    """Time the step with one part at a time in its plain form, while time is left to compile it again."""
    if session.mode != "auto":
        session.report.say("left out: parts are compared in recorded steps, which this card does not run")
        return
    setting = _setting(session, session.size.batch_size)
    build = partial(ours, setting, session.mode)
    whole = build_all(session, {"the whole step": build}, _NUM_WARM_UP_STEPS)  # recorded: it keeps its form
    ratios = {}
    for name, (target, replacement) in PARTS.items():
        if not has_time_to_compile(session, f"the step with {name}"):
            continue
        if session.device.type == "cuda":
            torch._dynamo.reset()  # no graph is to be taken for that of another form; what is recorded stays
        with patch(target, replacement):
            steps = build_all(session, {name: build}, _NUM_WARM_UP_STEPS)
            seconds = _time(session, whole | steps)
        if name in seconds:
            ratios[name] = round(seconds[name] / seconds["the whole step"], 4)
            session.report.add(PARTS_KEY, ratios)
            session.report.say(f"with {name}: {ratios[name]} of the whole step's time")


def time_sampling(session: Session) -> None:
    """Time DDIM with few calls, of this project and of diffusers' pipeline, on images drawn together."""
    size = session.size
    setting = _setting(session, size.sample_batch)
    builders: dict[str, Callable[[], Step]] = {
        "this project, compiled": partial(our_drawing, setting, "ddim", size.few_calls, compilation="auto"),
        "this project, plain": partial(our_drawing, setting, "ddim", size.few_calls, compilation="off"),
        "diffusers, bf16": lambda: with_default_convolutions(diffusers_pipeline(setting, size.few_calls, True)),
        "diffusers as it ships, fp32": lambda: with_default_convolutions(
            diffusers_pipeline(setting, size.few_calls, False)
        ),
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
    ceiling = 1e12 * session.report.values["machine"]["matrix_tflops"]
    flops = batch_size * flops_per_image(_setting(session, batch_size))
    seconds = _time(session, build_all(session, builders, _NUM_WARM_UP_STEPS))
    rows: dict[str, dict[str, float]] = session.report.values.get("train", {})
    for name, value in seconds.items():
        rows[name] = {
            "ms": round(1e3 * value, 3),
            "images_per_second": round(batch_size / value, 1),
            "of_ceiling": round(flops / value / ceiling, 3),
        }
        session.report.say(f"{name}: {rows[name]}")
    session.report.add("train", rows)


def has_time_to_compile(session: Session, what: str) -> bool:
    """Return whether another compilation may begin; if not, print what is left out."""
    if session.device.type != "cuda" or session.deadline.left() >= _SECONDS_TO_COMPILE:
        return True
    session.report.say(f"left out, for want of time: {what}")
    return False


def build_all(session: Session, builders: Mapping[str, Callable[[], Step]], num_warm_up_steps: int) -> dict[str, Step]:
    """Return warm steps; those that cannot be built or run here are left out with a line that says why."""
    steps = {}
    for name, build in builders.items():
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", ".*cannot be recorded.*")  # the row would not be what it says
                step = build()
                for _ in range(num_warm_up_steps):
                    step()
        except Exception as error:  # a peer of another version fails in ways of its own
            session.report.say(f"left out: {name} ({type(error).__name__}: {error})")
            continue
        steps[name] = step
    return steps


def with_default_convolutions(step: Step) -> Step:
    """Return a peer's step that runs under torch's default choice of convolutions, which this process changed."""

    def run() -> None:
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        try:
            step()
        finally:
            torch.backends.cudnn.benchmark = before

    return run


def _time(session: Session, steps: Mapping[str, Step]) -> dict[str, float]:
    return time_in_turn(steps, session.size.steps_a_turn, session.size.num_rounds, session.device)


def _setting(session: Session, batch_size: int) -> Setting:
    return Setting(batch_size, session.size.image_size, session.size.unet.widths, session.device)
