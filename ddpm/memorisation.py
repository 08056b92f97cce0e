"""A test for copies: distances of generated and of held-out real images to the images a model was trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.checks import require_features
from ddpm.shapes import Float, Int64

EXPECTED_SHARE = 0.05
"""Share of images that count as close if nothing is copied: the closest twentieth of held-out real images."""

_QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class NearestImages:
    """The nearest image in a set, for each of several images.

    Attributes:
        distances: Euclidean distance between the features of the two.
        indices: index of the nearest image in the set.
    """

    distances: Float[Tensor, " images"]
    indices: Int64[Tensor, " images"]


@dataclass(frozen=True)
class Memorisation:
    """Nearness of generated images to the training images, compared with that of held-out real images.

    Attributes:
        share: share of the generated images closer than `threshold`; about EXPECTED_SHARE if nothing is copied, less if
            the images are unlike any real one.
        nearer_than_held_out: the probability that a generated image is nearer to its nearest training image than a
            held-out image is to its own; 1/2 if both are alike, towards 1 the more is copied.
        threshold: the distance that the closest twentieth of held-out images stays within.
    """

    share: float
    nearer_than_held_out: float
    threshold: float


def nearest_images(
    features: Float[Tensor, "images features"], training: Float[Tensor, "training_images features"]
) -> NearestImages:
    """Return the nearest training image of each image, by the Euclidean distance between features.

    Raises:
        ValueError: there are no training images, or these are no features to compare.
    """
    require_features(features, "features")
    require_features(training, "training")
    if len(training) == 0:
        raise ValueError("the nearest training images need at least one training image, got none")
    distances, indices = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
    for queries in torch.split(features, _QUERIES_AT_ONCE) if len(features) else ():
        # Not by a matrix product: its rounding would hide that the distance of a copy is zero.
        found = torch.cdist(queries, training, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        distances.append(found.values)
        indices.append(found.indices)
    return NearestImages(torch.cat(distances), torch.cat(indices))


def memorisation(
    generated: Float[Tensor, " generated_images"], held_out: Float[Tensor, " held_out_images"]
) -> Memorisation:
    """Compare the distances of generated and of held-out real images to their nearest training images.

    `nearer_than_held_out` is the statistic of Meehan et al. 2020, "A non-parametric test to detect data-copying in
    generative models", section 3 (Mann-Whitney's U over the number of pairs), over the whole space at once. It weighs
    all images alike, so many bad images hide a few copies; `share` looks at the closest images alone.

    Args:
        generated: each generated image's distance to its nearest training image.
        held_out: the same for real images that the model was not trained on.

    Raises:
        ValueError: one of them is empty.
    """
    from scipy.stats import mannwhitneyu

    if len(generated) == 0 or len(held_out) == 0:
        raise ValueError(f"memorisation needs generated and held-out images, got {len(generated)} and {len(held_out)}")
    threshold = held_out.double().quantile(EXPECTED_SHARE)
    pairs_won = mannwhitneyu(held_out.double().numpy(), generated.double().numpy(), method="asymptotic").statistic
    return Memorisation(
        share=float((generated.double() < threshold).double().mean()),
        nearer_than_held_out=float(pairs_won) / (len(generated) * len(held_out)),
        threshold=float(threshold),
    )
