"""Denoising diffusion probabilistic models (Ho et al. 2020): usable on its own, with torch and numpy alone.

Checkpoints, features, metrics and the writing of pictures ask for more packages; they are imported by their own names.
"""

from ddpm.data import TrainingImages
from ddpm.diffusion import GaussianDiffusion
from ddpm.ema import ExponentialMovingAverage
from ddpm.guidance import guided
from ddpm.loading import load
from ddpm.samplers import ImageNoise, sample, sampler_steps
from ddpm.schedules import cosine_betas, linear_betas
from ddpm.training import train
from ddpm.training_state import TrainingConfig, TrainingState
from ddpm.unet import UNet, UNetConfig

__all__ = [
    "ExponentialMovingAverage",
    "GaussianDiffusion",
    "ImageNoise",
    "TrainingConfig",
    "TrainingImages",
    "TrainingState",
    "UNet",
    "UNetConfig",
    "cosine_betas",
    "guided",
    "linear_betas",
    "load",
    "sample",
    "sampler_steps",
    "train",
]
