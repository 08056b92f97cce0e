"""Distances between two sets of images, computed from their features by torch-fidelity.

Nothing here is called FID or KID: a distance earns those names only with Inception features (see `ddpm.features`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from ddpm.checks import require_features
from ddpm.shapes import Float

NEIGHBOURHOOD = 3
"""Number k of the nearest neighbour that bounds the ball around an image; the published one."""

_NORMAL_QUANTILE = 1.959964
"""97.5 % quantile of the normal distribution: 95 % lie within it on both sides."""

_ROWS_AT_ONCE = 1024
"""Rows of a kernel matrix computed at a time, to save memory."""


@dataclass(frozen=True)
class KernelDistance:
    """Mean of the kernel distance over random subsets, with its confidence interval.

    Attributes:
        mean: the estimate.
        std: standard deviation of the subsets' values; not the error of the mean.
        low: lower end of the 95 % confidence interval.
        high: its upper end.
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


def frechet_distance(real: Float[Tensor, "real features"], fake: Float[Tensor, "fake features"]) -> float:
    """Return the Fréchet distance of the Gaussians fitted to two sets of features.

    Heusel et al. 2017, Eq. 6: |m_r - m_f|^2 + Tr(C_r + C_f - 2 (C_r C_f)^(1/2)). It is biased upwards for few images:
    compare only values from the same numbers of images.

    Raises:
        ValueError: a set holds fewer than two images, or these are no features to compare.
    """
    _require_images(real, fake, least=2)
    statistics = (fid_features_to_statistics(features.double().cpu()) for features in (real, fake))
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def kernel_distance(
    real: Float[Tensor, "real features"],
    fake: Float[Tensor, "fake features"],
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Return the squared maximum mean discrepancy of two sets of features under the kernel (x.y / d + 1)^3.

    Bińkowski et al. 2018, Eq. 4. It is unbiased: for equal distributions it is about zero, and may be negative.

    The 95 % confidence interval is mean ± 1.96 (s_images^2 + std^2 / num_subsets)^(1/2). The first term is
    `kernel_distance_error`, the effect of other images of the same two kinds; the second is that of other subsets.

    Args:
        real: features of real images.
        fake: features of generated images.
        num_subsets: number of random subsets that the mean is taken over.
        subset_size: images of each set in a subset, reduced to the size of the smaller set.
        seed: seed of the subsets, at least 0; those that differ by a multiple of 2^32 choose the same.

    Raises:
        ValueError: a set holds fewer than three images, or these are no features to compare.
    """
    _require_images(real, fake, least=3)
    size = min(subset_size, len(real), len(fake))
    found = kid_features_to_metric(
        real.double(),
        fake.double(),
        kid_subsets=num_subsets,
        kid_subset_size=size,
        rng_seed=seed % 2**32,  # NumPy's generator takes no larger ones
        verbose=False,
    )
    mean, std = found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]
    error = math.sqrt(kernel_distance_error(real, fake) ** 2 + std**2 / num_subsets)
    return KernelDistance(mean, std, mean - _NORMAL_QUANTILE * error, mean + _NORMAL_QUANTILE * error)


def kernel_distance_error(real: Float[Tensor, "real features"], fake: Float[Tensor, "fake features"]) -> float:
    """Return the standard error of the kernel distance of two whole sets, by the jackknife over their images.

    Arvesen 1969, "Jackknifing U-statistics", for two samples: the variance is the sum over both sets of
    (n - 1) / n Σ_i (D_-i - mean D_-i)^2, where D_-i is the distance without image i. It tends to the true variance
    if the distributions differ. It is never too small on average (Efron & Stein 1981), and up to twice as large if they
    are equal, so that intervals of real against real are rather too wide.

    Raises:
        ValueError: a set holds fewer than three images, or these are no features to compare.
    """
    _require_images(real, fake, least=3)
    return math.sqrt(_jackknife_variance(real, fake) + _jackknife_variance(fake, real))


def _jackknife_variance(varied: Tensor, other: Tensor) -> float:
    """Return the variance of the distance when each image of `varied` is left out in turn."""
    m, n = len(varied), len(other)
    own = _kernel_sums(varied, varied, with_itself=False)
    across = _kernel_sums(varied, other)
    # The terms that depend on the image left out; the sum within `other` is constant.
    without = (own.sum() - 2.0 * own) / ((m - 1) * (m - 2)) - 2.0 * (across.sum() - across) / ((m - 1) * n)
    return float((m - 1) * without.var(correction=0))


def _kernel_sums(x: Tensor, y: Tensor, with_itself: bool = True) -> Tensor:
    """Return, for each row of `x`, the sum of its kernel with all rows of `y`; without itself if `y` is `x`."""
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
    """Return the share of generated images that lie among the real ones, and the reverse.

    Kynkäänniemi et al. 2019, Eq. 1 and 2: an image lies in a set if it is within the ball around one of the set's
    images that reaches to that image's k-th nearest neighbour in the set. Both grow with the numbers of images:
    compare only values from the same numbers.

    Args:
        real: features of real images.
        fake: features of generated images.
        neighbourhood: k, at least 1.

    Returns:
        Shares in [0, 1].

    Raises:
        ValueError: a set holds no more than `neighbourhood` images, or these are no features to compare.
    """
    _require_images(real, fake, least=neighbourhood + 1)
    found = prc_features_to_metric(
        fake.double(), real.double(), prc_neighborhood=neighbourhood, save_cpu_ram=True, verbose=False
    )
    return PrecisionRecall(found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL])


def _require_images(real: Tensor, fake: Tensor, least: int) -> None:
    for name, features in (("real", real), ("fake", fake)):
        require_features(features, name)
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"real and fake must have as many features, got {real.shape[1]} and {fake.shape[1]}: take one extractor"
        )
    if len(real) < least or len(fake) < least:
        raise ValueError(f"each set needs at least {least} images, got {len(real)} real and {len(fake)} generated")
