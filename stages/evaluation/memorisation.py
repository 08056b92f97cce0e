"""Memorisation: each sample beside its nearest training image, and whether samples are nearer than real images are."""

import pandas as pd
import torch
from torch import Tensor

from ddpm.images import Picture, grid
from ddpm.memorisation import EXPECTED_SHARE, NearestImages, memorisation, nearest_images
from stages.evaluation.real_features import RealFeatures
from stages.runtime.reporting import say

MIN_HELD_OUT = 20
"""Minimum of held-out images, so that the closest twentieth of them is at least one."""

_PAIRS_PER_ROW = 4


def measure_memorisation(
    nearest: NearestImages, real: RealFeatures, train_splits: list[str], suffix: str
) -> dict[str, float | int | str]:
    """Return the metrics for metrics.json; without enough images that were not trained on, only the counts."""
    held_out_splits = [split for split in real.features if split not in train_splits]
    held_out = real.select(held_out_splits) if held_out_splits else torch.empty(0)
    counts: dict[str, float | int | str] = {
        "train_splits": ", ".join(train_splits),
        "num_training_images_compared": len(real.select(train_splits)),
        "num_held_out": len(held_out),
    }
    if len(held_out) < MIN_HELD_OUT:
        say("evaluate", f"no share of memorised samples, since {len(held_out)} held-out images are too few")
        return counts
    found = memorisation(nearest.distances, nearest_images(held_out, real.select(train_splits)).distances)
    return {
        f"memorised_share_{suffix}": found.share,
        "memorised_share_expected": EXPECTED_SHARE,
        f"memorised_distance_{suffix}": found.threshold,
        f"nearer_than_held_out_{suffix}": found.nearer_than_held_out,
    } | counts


def tabulate_nearest(nearest: NearestImages, real: RealFeatures, train_splits: list[str]) -> pd.DataFrame:
    """Return one row per sample: its number, the nearest training image's split, position, number, and distance."""
    images = real.select_images(train_splits).iloc[nearest.indices.numpy()]
    table = images.add_prefix("nearest_").reset_index(drop=True)
    table.insert(0, "sample", range(len(table)))
    return table.assign(distance=nearest.distances.numpy())


def draw_closest_pairs(samples: Tensor, images: Tensor, table: pd.DataFrame, num_pairs: int) -> Picture:
    """Draw the closest pairs side by side, closest first: a sample on the left, its nearest image on the right."""
    closest = table.nsmallest(num_pairs, "distance")
    left = samples[torch.tensor(closest["sample"].to_numpy())]
    right = images[torch.tensor(closest["nearest_position"].to_numpy())]
    pairs = torch.stack([left, right], dim=1).flatten(0, 1)
    return grid(pairs, columns=2 * min(_PAIRS_PER_ROW, len(closest)))
