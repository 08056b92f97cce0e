"""Samplers, one per file: a generator of steps, with a data sheet as the docstring of its file."""

from collections.abc import Iterator
from typing import get_args

import torch

from ddpm.config import SamplerName
from ddpm.diffusion import GaussianDiffusion, NoiseModel
from ddpm.samplers.ancestral import sample_ancestral
from ddpm.samplers.ddim import sample_ddim
from ddpm.samplers.dpm_solver import sample_dpm_solver
from ddpm.samplers.noise import ImageNoise, InterpolatedNoise
from ddpm.samplers.step import SamplerStep

__all__ = [
    "ImageNoise",
    "InterpolatedNoise",
    "SamplerStep",
    "sample",
    "sample_ancestral",
    "sample_ddim",
    "sample_dpm_solver",
    "sampler_steps",
]


def sampler_steps(
    name: SamplerName,
    model: NoiseModel,
    diffusion: GaussianDiffusion,
    noise: ImageNoise,
    num_sampling_steps: int,
    eta: float = 0.0,
) -> Iterator[SamplerStep]:
    """Yield the steps of the sampler called `name`, without gradients; `eta` belongs to DDIM and DPM-Solver++.

    Raises:
        ValueError: the name is unknown, or an argument lies outside its range.
    """
    if name == "ddpm":
        return sample_ancestral(model, diffusion, noise, num_sampling_steps)
    if name == "ddim":
        return sample_ddim(model, diffusion, noise, num_sampling_steps, eta)
    if name == "dpm_solver++":
        return sample_dpm_solver(model, diffusion, noise, num_sampling_steps, eta)
    raise ValueError(f"unknown sampler {name!r}; choose one of {', '.join(get_args(SamplerName))}")


def sample(
    name: SamplerName,
    model: NoiseModel,
    diffusion: GaussianDiffusion,
    noise: ImageNoise,
    num_sampling_steps: int,
    eta: float = 0.0,
) -> torch.Tensor:
    """Return the finished images of the sampler called `name`, clipped to [-1, 1].

    Returns:
        Images of shape (batch, channels, height, width).

    Raises:
        ValueError: the name is unknown, or an argument lies outside its range.
    """
    x_t = torch.empty(0)
    for step in sampler_steps(name, model, diffusion, noise, num_sampling_steps, eta):
        x_t = step.x_t  # a list of all steps would keep a thousand batches
    return x_t.clamp(-1.0, 1.0)
