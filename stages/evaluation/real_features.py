"""Features of real images on disk: written by the reference stage, read by evaluate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from contract.documents import explain_damage, read_result
from ddpm.files import atomic_path
from stages.runtime.outputs import write_json, write_table

RECORD = "reference.json"
_IMAGES = "images.csv"


@dataclass(frozen=True)
class RealFeatures:
    """Features of real images, and a table of those images."""

    features: dict[str, Tensor]
    """features by split, float32, shape (images, features); the images are in random order"""
    images: pd.DataFrame
    """one row per image in the order of the features, split after split: its split, its position in the prepared array
    and its number in the dataset"""
    record: dict[str, Any]
    """the dataset's digest, the extractor, its weights and versions, and the counts"""

    def select(self, splits: list[str]) -> Tensor:
        """Return the features of several splits, one after the other."""
        return torch.cat([self.features[split] for split in splits])

    def select_images(self, splits: list[str]) -> pd.DataFrame:
        """Return the rows of `images` that belong to the rows of `select`."""
        return pd.concat([self.images[self.images["split"] == split] for split in splits], ignore_index=True)


def write_real_features(folder: Path, real: RealFeatures) -> None:
    """Write SPLIT.npy, SPLIT_statistics.npz, images.csv and, last, reference.json.

    The statistics are `mu` and `sigma`, mean and covariance in float64, the form that other programs read.
    """
    for split, features in real.features.items():
        array = features.numpy()
        with atomic_path(folder / f"{split}.npy") as temporary:
            np.save(temporary, array)
        if len(array) > 1:  # one image has no covariance
            exact = array.astype(np.float64)
            with atomic_path(folder / f"{split}_statistics.npz") as temporary:
                np.savez(temporary, mu=exact.mean(axis=0), sigma=np.cov(exact, rowvar=False))
    write_table(folder / _IMAGES, real.images)
    write_json(folder / RECORD, real.record)


def read_record(folder: Path) -> dict[str, Any]:
    """Read reference.json."""
    return read_result(folder / RECORD)


def read_real_features(folder: Path) -> RealFeatures:
    """Read the files that `write_real_features` wrote."""
    record = read_record(folder)
    features = {}
    for split in record["num_images"]:
        with explain_damage(folder / f"{split}.npy") as path:
            features[split] = torch.from_numpy(np.load(path))
    return RealFeatures(features, pd.read_csv(folder / _IMAGES, keep_default_na=False), record)
