"""Parts that all phases share: the device, the size of the work, the images and the report."""

import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.gpu.report import Deadline, Report
from ddpm import GaussianDiffusion, TrainingConfig, TrainingImages, TrainingState, UNet, UNetConfig, linear_betas
from ddpm.config import Compilation


@dataclass(frozen=True)
class Size:
    """Size of the work; the defaults are the published setting."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    image_size: int = 64
    batch_size: int = 32
    larger_batches: tuple[int, ...] = (64, 128)
    num_steps: int = 24_800
    log_every: int = 100
    num_timesteps: int = 1000
    num_samples: int = 1020
    sample_batch: int = 255
    few_calls: int = 20
    num_grid_images: int = 64
    steps_a_turn: int = 20
    num_rounds: int = 3


TOY = Size(
    unet=UNetConfig(widths=(8, 16), attention=(False, True), num_res_blocks=1, time_embedding_dim=8, norm_groups=4),
    image_size=8,
    batch_size=4,
    larger_batches=(8,),
    num_steps=12,
    log_every=5,
    num_timesteps=20,
    num_samples=10,
    sample_batch=5,
    few_calls=3,
    num_grid_images=9,
    steps_a_turn=2,
    num_rounds=2,
)
"""Size at which every phase takes seconds on a CPU."""


@dataclass
class Session:
    """One call of the command."""

    device: torch.device
    size: Size
    train_images: Tensor
    """uint8, shape (images, channels, height, width)"""
    valid_images: Tensor
    keep: Path
    """folder of the weights for later calls"""
    deadline: Deadline
    report: Report
    tests_end_at: float = 150.0
    """seconds after the start at which GPU tests that still run are stopped"""
    mode: Compilation = "auto"
    """mode of training the published setting; `record` lowers it if a test fails"""
    children: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    """processes that must not outlive this one"""

    @cached_property
    def diffusion(self) -> GaussianDiffusion:
        """Return the published noise schedule, on the device."""
        return GaussianDiffusion(linear_betas(self.size.num_timesteps)).to(self.device)

    def config(self, compilation: Compilation) -> TrainingConfig:
        """Return the published training configuration with another compilation."""
        return TrainingConfig(num_steps=self.size.num_steps, compilation=compilation)

    def start(self, config: TrainingConfig) -> TrainingState:
        """Return the published network before its first step."""
        torch.manual_seed(config.seed)
        return TrainingState.start(UNet(self.size.unet).to(self.device), config)

    def images(self, batch_size: int) -> TrainingImages:
        """Return the training images, on the device."""
        return TrainingImages(self.train_images, batch_size, seed=0, device=self.device)


def load_images(path: Path) -> tuple[Tensor, Tensor]:
    """Return the training and validation images of a file that `pack` wrote, as uint8 with channels first."""
    with np.load(path) as arrays:
        train, valid = (torch.from_numpy(arrays[name]).permute(0, 3, 1, 2).contiguous() for name in ("train", "valid"))
    return train, valid
