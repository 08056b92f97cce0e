"""Training as an iterator: each step yields an event, and the caller decides what to do with it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ddpm.data import TrainingImages
from ddpm.diffusion import GaussianDiffusion, LossName
from ddpm.ema import ExponentialMovingAverage
from ddpm.seeds import stream_seed
from ddpm.shapes import Float, Int64

Precision = Literal["auto", "float32", "bfloat16"]
RateSchedule = Literal["constant", "cosine"]

# Beside the epochs' permutations and steps' flips of ddpm.data.
_DIFFUSION_STREAM = 1 << 40
_DROPOUT_STREAM = 1 << 41


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; the defaults are the published setting.

    Raises:
        ValueError: a value lies outside its range.
    """

    num_steps: int = 24_800
    seed: int = 0
    loss: LossName = "mse"
    learning_rate: float = 2e-4
    rate_schedule: RateSchedule = "constant"
    warmup_steps: int = 0
    """steps in which the rate rises linearly from zero"""
    gradient_clip: float | None = None
    """largest norm of the whole gradient; None leaves it alone"""
    ema_decay: float = 0.999
    ema_warmup: bool = False
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if not self.learning_rate > 0.0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.warmup_steps <= self.num_steps:
            raise ValueError(f"warmup_steps must lie in 0 … num_steps={self.num_steps}, got {self.warmup_steps}")
        if self.rate_schedule not in get_args(RateSchedule):
            raise ValueError(f"unknown rate schedule {self.rate_schedule!r}; choose one of {get_args(RateSchedule)}")
        if self.gradient_clip is not None and not self.gradient_clip > 0.0:
            raise ValueError(f"gradient_clip must be above 0 or None, got {self.gradient_clip}")


@dataclass
class TrainingState:
    """What training changes, and so what a checkpoint holds."""

    model: nn.Module
    ema: ExponentialMovingAverage
    optimizer: torch.optim.Optimizer
    step: int = 0
    """optimizer steps done"""

    @classmethod
    def start(cls, model: nn.Module, config: TrainingConfig) -> "TrainingState":
        """The state before the first step."""
        model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        return cls(model, ExponentialMovingAverage(model, config.ema_decay, config.ema_warmup), optimizer)


@dataclass(frozen=True)
class StepEvent:
    """One step is done: optimizer and moving average have moved."""

    step: int
    """steps done, 1 … num_steps"""
    num_images_seen: int
    loss: Tensor
    """mean loss of the batch; on the device, so reading it waits for the step"""
    learning_rate: float


def train(
    state: TrainingState, images: TrainingImages, diffusion: GaussianDiffusion, config: TrainingConfig
) -> Iterator[StepEvent]:
    """Train from `state.step` to `config.num_steps`, Algorithm 1 of Ho et al. 2020.

    Step k is a function of the state and (seed, k), so a run that goes on from a checkpoint equals one that never
    stopped. No step waits for the device; the caller may leave at any event.

    Args:
        state: changed in place.
        images: the training images, on the device of the model.
        diffusion: the forward process.
        config: how to train.

    Yields:
        One event a step, after the optimizer and the moving average.
    """
    device = images.images.device
    diffusion = diffusion.to(device)
    autocast_dtype = resolve_precision(config.precision, device)
    generator = torch.Generator(device)
    for step in range(state.step, config.num_steps):
        x_0 = images.batch(step).contiguous(memory_format=torch.channels_last)
        generator.manual_seed(stream_seed(config.seed, _DIFFUSION_STREAM + step))
        t, eps = draw_t_and_eps(x_0, diffusion.num_timesteps, generator)

        state.model.train()
        with (
            _seeded_globally(stream_seed(config.seed, _DROPOUT_STREAM + step), device),
            torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not torch.float32),
        ):
            loss = diffusion.losses(state.model, x_0, t, eps, config.loss).mean()
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(state.model.parameters(), config.gradient_clip)
        rate = learning_rate_at(step, config)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.ema.update(state.model)
        state.step = step + 1
        yield StepEvent(state.step, state.step * images.batch_size, loss.detach(), rate)


def draw_t_and_eps(
    x_0: Float[Tensor, "batch channels height width"], num_timesteps: int, generator: torch.Generator
) -> tuple[Int64[Tensor, " batch"], Float[Tensor, "batch channels height width"]]:
    """t uniform in 0 … T-1 and eps standard normal, for each image of `x_0`."""
    t = torch.randint(num_timesteps, (len(x_0),), generator=generator, device=x_0.device)
    eps = torch.randn(x_0.shape, generator=generator, device=x_0.device)
    return t, eps


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The rate of step `step` (0, 1, …): linear warm-up, then constant or half a cosine down to zero.

    The cosine is Loshchilov & Hutter 2017, Eq. 5, without restarts.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.rate_schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of matrix products and convolutions on `device`: "auto" is bfloat16 where the hardware has it.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(get_args(Precision))}")
    if precision == "auto":
        return torch.bfloat16 if _has_fast_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


@contextmanager
def _seeded_globally(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the global generator of `device`, which dropout draws from, and puts the caller's state back."""
    generator = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Emulated bfloat16 is slower than float32: ask for the instructions.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
