"""Exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """A copy of a network, `module`, whose weights are the moving average of those of the network.

    Buffers, such as the running statistics of a batch normalisation, are copied as they are: most are averages already,
    or counts. torch.optim.swa_utils.AveragedModel does the same.

    Ho et al. 2020, section 4: average <- decay * average + (1 - decay) * weights after each step. With `warmup` the
    decay of update n is min(decay, (1 + n) / (10 + n)), so that a short run is not dominated by the initial weights
    (the rule of TensorFlow's ExponentialMovingAverage with `num_updates`).

    Args:
        model: the network to follow.
        decay: in [0, 1); published: 0.999.
        warmup: whether the decay starts low and rises to its value.

    Raises:
        ValueError: `decay` lies outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, warmup: bool = False) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        self.warmup = warmup
        self.num_updates = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    def current_decay(self) -> float:
        """Return the decay that the next update uses."""
        if not self.warmup:
            return self.decay
        return min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))

    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model`, and count the update."""
        self.move(model)
        self.num_updates += 1

    @torch.no_grad()
    def move(self, model: nn.Module) -> None:
        """Move the average by the current decay, and copy the buffers.

        All work is on the device, so that a CUDA graph can hold it.
        """
        averages: list[torch.Tensor] = list(self.module.parameters())
        weights = [parameter.detach() for parameter in model.parameters()]
        torch._foreach_lerp_(averages, weights, 1.0 - self.current_decay())
        for kept, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
