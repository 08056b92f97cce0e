"""Denoising diffusion probabilistic models (Ho et al. 2020): usable on its own, without the rest of the project.

Checkpoints, features, metrics and the writing of pictures ask for more packages; they are imported by their own names.
Each name below is imported when it is first used, so that `ddpm.config` can be imported without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm.config import DiffusionConfig, SamplingConfig, TrainingConfig, UNetConfig
    from ddpm.data import TrainingImages
    from ddpm.diffusion import GaussianDiffusion
    from ddpm.ema import ExponentialMovingAverage
    from ddpm.guidance import guided
    from ddpm.loading import load
    from ddpm.samplers import ImageNoise, sample, sampler_steps
    from ddpm.schedules import cosine_betas, linear_betas
    from ddpm.training import train
    from ddpm.training_state import TrainingState
    from ddpm.unet import UNet

_MODULES = {
    "DiffusionConfig": "config",
    "ExponentialMovingAverage": "ema",
    "GaussianDiffusion": "diffusion",
    "ImageNoise": "samplers",
    "SamplingConfig": "config",
    "TrainingConfig": "config",
    "TrainingImages": "data",
    "TrainingState": "training_state",
    "UNet": "unet",
    "UNetConfig": "config",
    "cosine_betas": "schedules",
    "guided": "guidance",
    "linear_betas": "schedules",
    "load": "loading",
    "sample": "samplers",
    "sampler_steps": "samplers",
    "train": "training",
}

__all__ = [
    "DiffusionConfig",
    "ExponentialMovingAverage",
    "GaussianDiffusion",
    "ImageNoise",
    "SamplingConfig",
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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
