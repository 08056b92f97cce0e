"""How two sets of images differ, computed from their features by torchmetrics and torch-fidelity.

Nothing here is called FID or KID: a distance earns those names only with Inception features (see `ddpm.features`).
"""

import math
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


NEIGHBOURHOOD = 3
"""Which nearest neighbour bounds the ball around an image; the published number."""

_NORMAL_QUANTILE = 1.959964
"""Of the normal distribution, at 97.5 %: what lies within it on both sides is 95 %."""

_ROWS_AT_ONCE = 1024
"""Of a kernel matrix, which is not kept whole."""


@dataclass(frozen=True)
class KernelDistance:
    """Mean of the kernel distance over random subsets, and what is known of it.

    Attributes:
        mean: the estimate.
        std: spread of the subsets' values; no error of the mean.
        low: where the 95 % confidence interval begins.
        high: where it ends.
    """

    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class PrecisionRecall:
    """The share of generated images among the real ones, and of real images among the generated ones."""

    precision: float
    recall: float


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

    The 95 % confidence interval is mean ± 1.96 (s_images^2 + std^2 / num_subsets)^(1/2): `kernel_distance_error` tells
    how far other images of the same two kinds would move the value, the second term how far other subsets would.

    Args:
        real: features of real images.
        fake: features of generated images.
        num_subsets: how many random subsets the mean is taken over.
        subset_size: images of each set in a subset; at most the smaller set's count is used.
        seed: of the subsets.

    Raises:
        ValueError: a set holds fewer than three images.
    """
    _require_images(real, fake, least=3)
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
    error = math.sqrt(kernel_distance_error(real, fake) ** 2 + float(std) ** 2 / num_subsets)
    return KernelDistance(
        float(mean), float(std), float(mean) - _NORMAL_QUANTILE * error, float(mean) + _NORMAL_QUANTILE * error
    )


def kernel_distance_error(real: Float[Tensor, "real features"], fake: Float[Tensor, "fake features"]) -> float:
    """Standard error of the kernel distance of two whole sets, by the jackknife over their images.

    Arvesen 1969, "Jackknifing U-statistics", for two samples: the variance is the sum over both sets of
    (n - 1) / n Σ_i (D_-i - mean D_-i)^2, where D_-i is the distance without image i. It tends to the true variance
    where the distributions differ; it is never too small on average (Efron & Stein 1981), and where they are equal it
    is up to twice as large, so that intervals for real against real err on the wide side.

    Raises:
        ValueError: a set holds fewer than three images.
    """
    _require_images(real, fake, least=3)
    return math.sqrt(_jackknife_variance(real, fake) + _jackknife_variance(fake, real))


def _jackknife_variance(varied: Tensor, other: Tensor) -> float:
    """Of the distance, when each image of `varied` is left out in turn."""
    m, n = len(varied), len(other)
    own = _kernel_sums(varied, varied, with_itself=False)
    across = _kernel_sums(varied, other)
    # What depends on the image left out; the sum within `other` stays as it is.
    without = (own.sum() - 2.0 * own) / ((m - 1) * (m - 2)) - 2.0 * (across.sum() - across) / ((m - 1) * n)
    return float((m - 1) * without.var(correction=0))


def _kernel_sums(x: Tensor, y: Tensor, with_itself: bool = True) -> Tensor:
    """For each row of `x` the sum of its kernel with all rows of `y`, or where `y` is `x` with all others."""
    columns, sums = y.double().T / y.shape[1], []
    for start in range(0, len(x), _ROWS_AT_ONCE):
        values = (x[start : start + _ROWS_AT_ONCE].double() @ columns + 1.0) ** 3
        if not with_itself:
            values.diagonal(start).zero_()
        sums.append(values.sum(dim=1))
    return torch.cat(sums)


def precision_recall(
    real: Float[Tensor, "real features"], fake: Float[Tensor, "fake features"], neighbourhood: int = NEIGHBOURHOOD
) -> PrecisionRecall:
    """How many generated images lie where real ones do, and the other way round.

    Kynkäänniemi et al. 2019, Eq. 1 and 2: an image lies in a set if it is within the ball around one of the set's
    images that reaches to that image's k-th nearest neighbour in the set. Both grow with the counts of images: compare
    only figures of the same counts.

    Args:
        real: features of real images.
        fake: features of generated images.
        neighbourhood: k, at least 1.

    Returns:
        Shares in [0, 1].

    Raises:
        ValueError: a set holds no more than `neighbourhood` images.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    _require_images(real, fake, least=neighbourhood + 1)
    found = prc_features_to_metric(
        fake.double(), real.double(), prc_neighborhood=neighbourhood, save_cpu_ram=True, verbose=False
    )
    return PrecisionRecall(found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL])


def _require_images(real: Tensor, fake: Tensor, least: int) -> None:
    if len(real) < least or len(fake) < least:
        raise ValueError(f"each set needs at least {least} images, got {len(real)} real and {len(fake)} generated")
