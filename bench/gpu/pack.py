"""The prepared images in one file, for a machine that has nothing of the pipeline."""

from pathlib import Path

import numpy as np

from ddpm.files import atomic_path
from stages.prepared import images_of


def pack(path: Path) -> None:
    """Write the training and validation images, uint8 with channels last, without compression."""
    train, valid = (images_of([split]).permute(0, 2, 3, 1).numpy() for split in ("train", "valid"))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, train=train, valid=valid)
    print(f"{path}: {len(train)} images to train on, {len(valid)} to compare with")
