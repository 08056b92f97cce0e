"""The state that training changes from step to step, and its optimizer and learning rate."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ddpm.config import TrainingConfig
from ddpm.ema import ExponentialMovingAverage


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
