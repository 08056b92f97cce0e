"""The network of an exported model in diffusers; `ddpm.export` copies this file beside the weights.

It needs diffusers, and nothing from ddpm. It differs from diffusers' own UNet2DModel in one point: the number of
sinusoids of the time step is the width of the embedding, not the number of channels of the first level.
"""

import functools
import math
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn


class FlowersUNet(UNet2DModel):  # type: ignore[misc]
    """UNet2DModel with `time_embedding_dim` sinusoids of the time step."""

    @functools.wraps(UNet2DModel.__init__)  # type: ignore[misc]  # diffusers reads the settings' names here
    def __init__(self, *settings: Any, **named_settings: Any) -> None:
        super().__init__(*settings, **named_settings)
        dim = self.config.time_embedding_dim
        self.time_proj = Sinusoids(dim)
        self.time_embedding = TimestepEmbedding(dim, dim)


class Sinusoids(nn.Module):
    """sin(t w_i), then cos(t w_i), w_i = 10000^(-i / (d/2 - 1)); w_i is computed in float64, as in ddpm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        exponents = torch.arange(half, dtype=torch.float64, device=t.device) / (half - 1)
        angles = t.float()[:, None] * torch.exp(-math.log(10_000.0) * exponents).float()[None, :]
        return torch.cat([angles.sin(), angles.cos()], dim=1)
