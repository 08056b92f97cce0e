"""Read the prepared dataset."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from contract.documents import explain_damage, read_result
from contract.errors import StageError
from contract.paths import DATASET
from ddpm.data import load_images
from ddpm.files import file_digest


def dataset_summary() -> dict[str, Any]:
    """Return the summary that preprocessing wrote."""
    return read_result(DATASET / "dataset.json")


def dataset_digest() -> str:
    """Return a digest of the prepared pixels and of the table that assigns images to splits."""
    digests = f"{dataset_summary()['images_md5']} {file_digest(DATASET / 'index.csv')}"
    return hashlib.md5(digests.encode(), usedforsecurity=False).hexdigest()


def image_index() -> pd.DataFrame:
    """Return a row per image of the prepared array: number, class, split, size and digest of its source."""
    with explain_damage(DATASET / "index.csv") as path:
        # A class may have the name "nan" or "01".
        index = pd.read_csv(path, keep_default_na=False, dtype={"class_name": str})
        if len(index) != len(all_images()):
            raise ValueError(f"it has {len(index)} rows for {len(all_images())} images")
    return index


def count_images() -> dict[str, int]:
    """Return the number of images of each split that has any."""
    return dict(Counter(image_index()["split"]))


def positions_of(splits: Sequence[str]) -> Tensor:
    """Return the positions of the images of `splits` in the prepared array, int64, in the order of the index.

    Raises:
        StageError: there are no such images.
    """
    positions = np.flatnonzero(image_index()["split"].isin(list(splits)).to_numpy())
    if len(positions) == 0:
        raise StageError(f"no image in split {' or '.join(splits)}; images by split: {count_images()}")
    return torch.from_numpy(positions)


def all_images() -> Tensor:
    """Return the prepared array, uint8, shape (images, 3, height, width), mapped from its file."""
    with explain_damage(DATASET / "images.npy") as path:
        return load_images(path)
