"""Pack training and validation images into one file, for a machine without the pipeline."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.paths import DATASET
from ddpm.files import atomic_path
from stages.datasets.decoding import UndecodableImageError
from stages.datasets.flowers102 import ARCHIVE, LABELS, Flowers102
from stages.datasets.flowers102 import SPLITS as SPLIT_NUMBERS
from stages.datasets.preparation import parallel_map, prepare
from stages.datasets.prepared import all_images, dataset_summary, positions_of

SPLITS = ("train", "valid")
IMAGE_SIZE = 64


class PackError(Exception):
    """There are no images to pack."""


def pack(path: Path, source: Path | None) -> None:
    """Write the images, uint8 with channels last.

    Args:
        path: an .npz file.
        source: a folder that holds Oxford Flowers 102 as it is published; None takes build/dataset.

    Raises:
        PackError: the prepared images are not of the published size, or an image of the folder is damaged.
    """
    arrays = _prepared() if source is None else _read(source)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, train=arrays["train"], valid=arrays["valid"])
    print(f"{path}: {len(arrays['train'])} images to train on, {len(arrays['valid'])} to compare with")


def _prepared() -> dict[str, NDArray[np.uint8]]:
    if not DATASET.is_dir():
        raise PackError(
            f"{DATASET} does not exist: name the folder of Oxford Flowers 102 by --source, or prepare the dataset first"
        )
    size = dataset_summary()["image_size"]
    if size != IMAGE_SIZE:
        raise PackError(
            f"{DATASET} holds images of {size}×{size}, and the published setting learns {IMAGE_SIZE}×{IMAGE_SIZE}: "
            "name the folder of Oxford Flowers 102 by --source, or prepare them with the profile flowers102"
        )
    return {split: all_images()[positions_of([split])].permute(0, 2, 3, 1).numpy() for split in SPLITS}


def _read(source: Path) -> dict[str, NDArray[np.uint8]]:
    if missing := [name for name in (ARCHIVE, LABELS, SPLIT_NUMBERS) if not (source / name).is_file()]:
        raise PackError(f"{source} must hold {ARCHIVE}, {LABELS} and {SPLIT_NUMBERS}; missing: {', '.join(missing)}")
    images = (image for image in Flowers102().images(source) if image.split in SPLITS)
    found: dict[str, list[NDArray[np.uint8]]] = {split: [] for split in SPLITS}
    for prepared in parallel_map(partial(prepare, size=IMAGE_SIZE), images):
        if isinstance(prepared, UndecodableImageError):
            raise PackError(f"an image in {source} cannot be read: {prepared}")
        pixels, row = prepared
        found[row["split"]].append(pixels)
    return {split: np.stack(arrays) for split, arrays in found.items()}
