"""Distances between two sets of images, computed from their features by torchmetrics.

Nothing here is called FID or KID: a distance earns those names only with Inception features (see `ddpm.features`).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ddpm.shapes import Float

_ALONE: dict[str, Any] = {"sync_on_compute": False}
"""The features given are all there are: one of several processes must not wait for the others to add theirs."""


@dataclass(frozen=True)
class KernelDistance:
    """Mean of the kernel distance over random subsets, and its standard deviation."""

    mean: float
    std: float


class _GivenFeatures(nn.Module):
    """Hands features through, so that torchmetrics takes them as they are and they are extracted only once."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Float[Tensor, "real features"], fake: Float[Tensor, "fake features"]) -> float:
    """Distance of the Gaussians fitted to two sets of features.

    Heusel et al. 2017, Eq. 6: |m_r - m_f|^2 + Tr(C_r + C_f - 2 (C_r C_f)^(1/2)). It is biased upwards by few images:
    compare only figures of the same counts.

    Raises:
        ValueError: a set holds fewer than two images.
    """
    _require_images(real, fake, least=2)
    metric = FrechetInceptionDistance(feature=_GivenFeatures(real.shape[1]), **_ALONE)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return float(metric.compute())


def kernel_distance(
    real: Float[Tensor, "real features"],
    fake: Float[Tensor, "fake features"],
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Squared maximum mean discrepancy of two sets of features under the cubic kernel (x.y / d + 1)^3.

    Bińkowski et al. 2018, Eq. 4. Unbiased, so the real-vs-real value is about zero, and may be below it.

    Args:
        real: features of real images.
        fake: features of generated images.
        num_subsets: how many random subsets the mean is taken over.
        subset_size: images of each set in a subset; at most the smaller set's count is used.
        seed: of the subsets.

    Raises:
        ValueError: a set holds fewer than two images.
    """
    _require_images(real, fake, least=2)
    size = min(subset_size, len(real), len(fake))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        # Not torch.manual_seed: that seeds every accelerator as well, which nobody gives back.
        torch.default_generator.manual_seed(seed)
        metric = KernelInceptionDistance(
            feature=_GivenFeatures(real.shape[1]), subsets=num_subsets, subset_size=size, **_ALONE
        )
        metric.update(real, real=True)
        metric.update(fake, real=False)
        mean, std = metric.compute()
    return KernelDistance(float(mean), float(std))


def _require_images(real: Tensor, fake: Tensor, least: int) -> None:
    if len(real) < least or len(fake) < least:
        raise ValueError(f"each set needs at least {least} images, got {len(real)} real and {len(fake)} generated")
