"""The steps that every sampler yields."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SamplerStep:
    """The state after one step of a sampler."""

    number: int
    """1 … num_sampling_steps"""
    t: int
    """the time step at which the network was called"""
    x_t: Tensor
    """the image after the step; in the last step the finished image, in [-1, 1] up to the noise of its prediction"""
    x_0_pred: Tensor
    """the finished image as predicted in this step"""
