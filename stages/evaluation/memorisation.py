"""Each sample beside its nearest training image, and whether samples are nearer than real images would be."""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.images import grid
from ddpm.memorisation import EXPECTED_SHARE, NearestImages, memorisation, nearest_images
from stages.evaluation.real_features import RealFeatures

LEAST_HELD_OUT = 20
"""Of real images, for the closest twentieth of them to be one at least."""

_PAIRS_A_ROW = 4


def memorisation_figures(
    nearest: NearestImages, real: RealFeatures, train_splits: list[str], suffix: str
) -> dict[str, float | int | str]:
    """The figures for metrics.json; those that need images that were not trained on stay away where there are few."""
    held_out_splits = [split for split in real.features if split not in train_splits]
    held_out = real.of(held_out_splits) if held_out_splits else torch.empty(0)
    counts: dict[str, float | int | str] = {
        "train_splits": ", ".join(train_splits),
        "num_training_images_compared": len(real.of(train_splits)),
        "num_held_out": len(held_out),
    }
    if len(held_out) < LEAST_HELD_OUT:
        print(f"evaluate: no share of memorised samples, since {len(held_out)} held-out images are too few", flush=True)
        return counts
    found = memorisation(nearest.distances, nearest_images(held_out, real.of(train_splits)).distances)
    return {
        f"memorised_share_{suffix}": found.share,
        "memorised_share_expected": EXPECTED_SHARE,
        f"memorised_distance_{suffix}": found.threshold,
        f"nearer_than_held_out_{suffix}": found.nearer_than_held_out,
    } | counts


def nearest_table(nearest: NearestImages, real: RealFeatures, train_splits: list[str]) -> pd.DataFrame:
    """A row a sample: its number, the nearest training image's split, position and number, and their distance."""
    images = real.images_of(train_splits).iloc[nearest.indices.numpy()].add_prefix("nearest_").reset_index(drop=True)
    images.insert(0, "sample", range(len(images)))
    return images.assign(distance=nearest.distances.numpy())


def closest_pairs(samples: Tensor, images: Tensor, table: pd.DataFrame, num_pairs: int) -> NDArray[np.uint8]:
    """The closest pairs side by side, the closest first: a sample on the left, its nearest image on the right."""
    closest = table.nsmallest(num_pairs, "distance")
    left = samples[torch.tensor(closest["sample"].to_numpy())]
    right = images[torch.tensor(closest["nearest_position"].to_numpy())]
    pairs = torch.stack([left, right], dim=1).flatten(0, 1)
    return np.asarray(grid(pairs, columns=2 * min(_PAIRS_A_ROW, len(closest))))
