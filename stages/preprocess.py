"""Crop and resize every raw image into one uint8 array, and write an index table of them.

Images stream from the dataset to the array; what stays in memory of each is its row of the index.
"""

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ddpm.files import atomic_path, file_digest
from stages.datasets import DATASETS, SourceImage
from stages.errors import StageError
from stages.params import Params
from stages.paths import DATA, DATASET, RECEIPT
from stages.progress import progress_bar
from stages.runner import run_stage

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PreparedImage:
    """A row of the array, and its row of the index."""

    pixels: NDArray[np.uint8]
    row: dict[str, Any]


def preprocess(params: Params) -> None:
    """build/dataset/: images.npy, index.csv, dataset.json."""
    receipt = json.loads(RECEIPT.read_text())
    verify_data(receipt, DATA)
    dataset, size = DATASETS[receipt["dataset"]], params.preprocess.image_size
    count = dataset.count(DATA)
    rows = []
    DATASET.mkdir(parents=True, exist_ok=True)
    with atomic_path(DATASET / "images.npy") as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
        with progress_bar("preprocess", count, "images") as bar:
            prepared = parallel_map(lambda image: prepare(image, size), dataset.images(DATA))
            for position, image in enumerate(prepared):
                array[position] = image.pixels
                rows.append(image.row)
                bar.update()
        array.flush()
    if len(rows) != count:
        raise StageError(f"{receipt['dataset']} should hold {count} images, got {len(rows)}")
    index = pd.DataFrame(rows)
    index["split"] = index["split"].fillna(pd.Series(assigned_splits(index, params.preprocess.valid_fraction)))
    write_index(index)
    summary = {
        "dataset": receipt["dataset"],
        "source_digest": receipt["digest"],
        "image_size": size,
        "num_images": count,
        "images_md5": file_digest(DATASET / "images.npy"),
        "splits": {name: int(number) for name, number in index["split"].value_counts().sort_index().items()},
        "num_classes": int(index["class_number"].nunique()),
    }
    with atomic_path(DATASET / "dataset.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"preprocess: {count} images of {size}x{size}, splits {summary['splits']}", flush=True)


def verify_data(receipt: dict[str, Any], folder: Path) -> None:
    """Compare data/ with the receipt, so that nothing is prepared from bytes that nobody pinned.

    Raises:
        StageError: a file is missing or has other bytes.
    """
    for file in receipt["files"]:
        path = folder / file["path"]
        if not path.is_file() or file_digest(path) != file["md5"]:
            problem = "has other bytes than were downloaded" if path.is_file() else "is missing"
            raise StageError(f"{path} {problem}; `dvc repro --force download` brings it back")


def prepare(image: SourceImage, size: int) -> PreparedImage:
    """Decode, crop to the central square, and resize with antialiasing.

    Raises:
        StageError: the image cannot be decoded.
    """
    if isinstance(image.content, bytes):
        digest, picture = hashlib.md5(image.content, usedforsecurity=False).hexdigest(), decode(image)
    else:
        digest = hashlib.md5(image.content.tobytes(), usedforsecurity=False).hexdigest()
        picture = Image.fromarray(image.content)
    row = {
        "number": image.number,
        "name": image.name,
        "class_number": image.class_number,
        "class_name": image.class_name,
        "split": image.split,
        "original_width": picture.width,
        "original_height": picture.height,
        "source_md5": digest,
    }
    return PreparedImage(centre_cropped(picture, size), row)


def decode(image: SourceImage) -> Image.Image:
    """Pixels of an encoded file, upright, as RGB; what is transparent becomes white.

    Raises:
        StageError: it is no image, or is damaged.
    """
    assert isinstance(image.content, bytes)
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(image.content)))
        if picture.mode == "I;16":  # which Pillow would clip at 255, not scale
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise StageError(f"{image.name} cannot be decoded as an image ({error}); remove or replace it") from error


def centre_cropped(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """The central square of `picture`, resized by Pillow's bicubic filter, which antialiases when it shrinks."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    # Not resize's own box: its filter would reach for pixels beyond the square.
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def assigned_splits(index: pd.DataFrame, valid_fraction: float) -> list[str]:
    """A split for each image, by the digest of its source: it stays when other images come or go.

    The digest, read as a number in [0, 1), below `valid_fraction` is "valid", below twice that "test", else "train".
    """
    positions = index["source_md5"].map(lambda digest: int(digest[:13], 16) / 16**13)
    return ["valid" if p < valid_fraction else "test" if p < 2 * valid_fraction else "train" for p in positions]


def write_index(index: pd.DataFrame) -> None:
    """index.csv, a row an image, in the order of the array."""
    with atomic_path(DATASET / "index.csv") as temporary:
        index.to_csv(temporary, index=False, lineterminator="\n")


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in order, computed on all cores; only a few items wait in memory.

    Threads are enough: Pillow decodes and resizes without Python's lock.
    """
    cores = os.cpu_count() or 1
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


if __name__ == "__main__":
    run_stage("preprocess", preprocess)
