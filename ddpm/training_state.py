"""The state that training changes from step to step, and its optimizer and learning rate."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ddpm.devices import Compilation, Precision
from ddpm.diffusion import LossName
from ddpm.ema import ExponentialMovingAverage

RateSchedule = Literal["constant", "cosine", "linear"]


class NotFiniteError(Exception):
    """A loss or a gradient was infinite or not a number, so that training cannot go on.

    Attributes:
        step: number of the step, 1 … num_steps.
        learning_rate: learning rate of the step.
    """

    def __init__(self, step: int, learning_rate: float) -> None:
        super().__init__(f"the loss or gradient of step {step} is not finite, at a learning rate of {learning_rate:g}")
        self.step = step
        self.learning_rate = learning_rate


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; the defaults are the published setting.

    Raises:
        ValueError: a value lies outside its range.
    """

    num_steps: int = 24_800
    seed: int = 0
    loss: LossName = "mse"
    min_snr_gamma: float | None = None
    """weighs the losses by Hang et al. 2023; None weighs all alike"""
    label_dropout: float = 0.1
    """share of the labels that are replaced by "no class", so that guidance is possible (Ho & Salimans 2022, Algorithm
    1); of images without labels nothing"""
    learning_rate: float = 2e-4
    rate_schedule: RateSchedule = "constant"
    warmup_steps: int = 0
    """steps in which the rate rises linearly from zero"""
    gradient_clip: float | None = None
    """largest norm of the whole gradient; None leaves it alone"""
    accumulation_steps: int = 1
    """parts in which a batch is worked through, one after the other, to save memory"""
    gradient_checkpointing: bool = False
    """see UNet"""
    ema_decay: float = 0.999
    ema_warmup: bool = False
    extra_ema_decays: tuple[float, ...] = ()
    """of further moving averages beside the one that samples are drawn from"""
    precision: Precision = "auto"
    compilation: Compilation = "auto"
    """see `ddpm.devices.compiled`; "auto" replays the whole step as one CUDA graph besides, on a GPU"""
    deterministic: bool = False
    """on a GPU, take the algorithms that give the same bits each time, where others are faster; a CPU always does; see
    `ddpm.devices.deterministic_algorithms`"""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if not 0 <= self.warmup_steps <= self.num_steps:
            raise ValueError(f"warmup_steps must lie in 0 … num_steps={self.num_steps}, got {self.warmup_steps}")
        if not self.learning_rate > 0.0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0.0 <= self.label_dropout <= 1.0:
            raise ValueError(f"label_dropout must lie in [0, 1], got {self.label_dropout}")
        for name, limit in (("gradient_clip", self.gradient_clip), ("min_snr_gamma", self.min_snr_gamma)):
            if limit is not None and not limit > 0.0:
                raise ValueError(f"{name} must be above 0 or None, got {limit}")
        for name, value, kind in (
            ("loss", self.loss, LossName),
            ("rate schedule", self.rate_schedule, RateSchedule),
            ("precision", self.precision, Precision),
            ("compilation", self.compilation, Compilation),
        ):
            if value not in get_args(kind):
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(get_args(kind))}")
        self._validate_combinations()

    def _validate_combinations(self) -> None:
        if self.accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be at least 1, got {self.accumulation_steps}")
        if self.accumulation_steps > 1 and self.compilation in ("reduce-overhead", "max-autotune"):
            raise ValueError(
                f"compilation={self.compilation!r} records CUDA graphs, whose memory the next part of a batch would "
                'take: set accumulation_steps to 1, or compilation to "default"'
            )
        decays = (self.ema_decay, *self.extra_ema_decays)
        if len(set(decays)) < len(decays):
            raise ValueError(f"extra_ema_decays must differ from each other and from ema_decay, got {decays}")


@dataclass
class TrainingState:
    """Everything that training changes, and that a checkpoint therefore holds."""

    model: nn.Module
    ema: ExponentialMovingAverage
    optimizer: torch.optim.Optimizer
    step: int = 0
    """optimizer steps done"""
    extra_emas: list[ExponentialMovingAverage] = field(default_factory=list)
    first_not_finite: Tensor | None = None
    """the first step with an infinite loss or gradient, 0 while there is none; on the device"""

    @classmethod
    def start(cls, model: nn.Module, config: TrainingConfig) -> "TrainingState":
        """Return the state before the first step.

        Raises:
            ValueError: a decay lies outside [0, 1).
        """
        model = model.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(list(model.parameters()), config.learning_rate)
        ema, *extra_emas = (
            ExponentialMovingAverage(model, decay, config.ema_warmup)
            for decay in (config.ema_decay, *config.extra_ema_decays)
        )
        return cls(model, ema, optimizer, extra_emas=extra_emas)

    @property
    def emas(self) -> list[ExponentialMovingAverage]:
        """All moving averages, the one that samples are drawn from first."""
        return [self.ema, *self.extra_emas]

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of the next step; on a GPU in place, because a recorded step reads it there."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def check_finite(self, config: TrainingConfig) -> None:
        """Wait for the device, and check that all losses and gradients so far are finite.

        Raises:
            NotFiniteError: one is not; the error names the first such step.
        """
        step = 0 if self.first_not_finite is None else int(self.first_not_finite)
        if step:
            raise NotFiniteError(step, learning_rate_at(step - 1, config))


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of step `step` (0, 1, …): linear warm-up, then the schedule of `config`.

    "constant" stays; "linear" falls to zero on a line; "cosine" falls to zero on half a cosine (Loshchilov & Hutter
    2017, Eq. 5, without restarts).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.rate_schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    if config.rate_schedule == "linear":
        return config.learning_rate * (1.0 - progress)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def build_optimizer(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Return the fused Adam; on a GPU one that a CUDA graph can hold, with its rate and step count on the device."""
    device = parameters[0].device
    if device.type != "cuda":
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    rate = torch.tensor(learning_rate, device=device)
    return torch.optim.Adam(parameters, lr=rate, fused=True, capturable=True)
