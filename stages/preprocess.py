"""Crop and resize every raw image into one uint8 array, and write an index table of them.

Images stream from the dataset to the array; what stays in memory of each is its row of the index.
"""

import hashlib
import io
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from contract.errors import StageError
from contract.params import Params
from contract.paths import DATA, DATASET, RECEIPT
from contract.sections import PreprocessParams
from ddpm.files import atomic_path, file_digest
from stages.datasets import DATASETS, SourceImage
from stages.runtime.progress import progress_bar
from stages.runtime.runner import run_stage

MARGIN = 2
"""A JPEG is decoded at the smallest scale of 1, 1/2, 1/4, 1/8 that leaves so many times the size that is wanted."""

INDEX_COLUMNS = (
    "number", "name", "class_number", "class_name", "split", "original_width", "original_height", "source_md5",
)  # fmt: skip
SKIPPED_COLUMNS = ("number", "name", "class_number", "class_name", "split", "source_md5", "reason")

_SHOWN_NAMES = 3
"""Of files, in an error."""

_JPEG_BLOCK = 8
_TURNED_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Picture:
    """A decoded image, upright, RGB."""

    pixels: Image.Image
    width: int
    """of the original"""
    height: int
    reduction: float
    """how many pixels of the original one of `pixels` stands for, in width and in height"""


@dataclass(frozen=True)
class PreparedImage:
    """A row of the array, and its row of the index."""

    pixels: NDArray[np.uint8]
    row: dict[str, Any]


class DamagedImageError(StageError):
    """An image cannot be decoded."""

    def __init__(self, image: SourceImage, reason: str) -> None:
        super().__init__(
            f"{image.name} cannot be decoded as an image ({reason}); remove or replace it, or leave out what is "
            "damaged by preprocess.skip_damaged: true"
        )
        self.row = source_row(image) | {"reason": reason}
        """its row of the table of skipped images"""


def preprocess(params: Params) -> None:
    """build/dataset/: images.npy, index.csv, skipped.csv, dataset.json.

    index.csv has a row for each image of the array, in its order. What is damaged is in neither: where
    `skip_damaged` allows it, it stands in skipped.csv with the reason.

    Raises:
        StageError: data/ is not what was downloaded; an image is damaged and not to be skipped, or all are.
    """
    receipt = json.loads(RECEIPT.read_text())
    verify_data(receipt, DATA)
    dataset, wanted = DATASETS[receipt["dataset"]], params.preprocess
    count = dataset.count(DATA)
    rows, skipped = write_images(dataset.images(DATA), count, wanted)
    if len(rows) + len(skipped) != count:
        raise StageError(f"{receipt['dataset']} should hold {count} images, got {len(rows) + len(skipped)}")
    index = pd.DataFrame(rows, columns=list(INDEX_COLUMNS))
    index["split"] = index["split"].fillna(pd.Series(assigned_splits(index, wanted.valid_fraction)))
    write_table("index.csv", index)
    write_table("skipped.csv", pd.DataFrame(skipped, columns=list(SKIPPED_COLUMNS)))
    write_summary(receipt, wanted.image_size, index, len(skipped))


def write_images(
    images: Iterable[SourceImage], count: int, wanted: PreprocessParams
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """images.npy, of about `count` images; gives the rows of index.csv and of skipped.csv.

    Raises:
        DamagedImageError: an image cannot be decoded, and is not to be skipped.
        StageError: none of them can be decoded.
    """
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    size = wanted.image_size
    with atomic_path(DATASET / "images.npy") as temporary, temporary.open("wb") as file:
        write_header(file, count, size)
        with progress_bar("preprocess", count, "images") as bar:
            for prepared in parallel_map(lambda image: prepare_or_refuse(image, size), images):
                if isinstance(prepared, PreparedImage):
                    file.write(prepared.pixels.tobytes())
                    rows.append(prepared.row)
                elif wanted.skip_damaged:
                    skipped.append(prepared.row)
                else:
                    raise prepared
                bar.update()
        if skipped and not rows:
            raise StageError(f"none of the {len(skipped)} images can be decoded; the first is {skipped[0]['reason']}")
        write_header(file, len(rows), size)
    return rows, skipped


def write_summary(receipt: dict[str, Any], size: int, index: pd.DataFrame, num_skipped: int) -> None:
    """dataset.json, and a line of it for people."""
    splits = {name: int(number) for name, number in index["split"].value_counts().sort_index().items()}
    summary = {
        "dataset": receipt["dataset"],
        "source_digest": receipt["digest"],
        "image_size": size,
        "num_images": len(index),
        "num_skipped": num_skipped,
        "images_md5": file_digest(DATASET / "images.npy"),
        "splits": splits,
        "num_classes": int(index["class_number"].nunique()),
    }
    with atomic_path(DATASET / "dataset.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"preprocess: {len(index)} images of {size}x{size}, splits {splits}", flush=True)
    if num_skipped:
        where = DATASET / "skipped.csv"
        print(f"preprocess: warning: {num_skipped} damaged images left out, see {where}", flush=True)


def verify_data(receipt: dict[str, Any], folder: Path) -> None:
    """Compare data/ with the receipt, so that nothing is prepared from bytes that nobody pinned.

    Raises:
        StageError: a file is missing, has other bytes, or was not downloaded.
    """
    known = {file["path"] for file in receipt["files"]}
    if unknown := [name for name in visible_files(folder) if name not in known]:
        more = f" and {len(unknown) - _SHOWN_NAMES} more" if len(unknown) > _SHOWN_NAMES else ""
        raise StageError(
            f"{folder} holds what was not downloaded: {', '.join(unknown[:_SHOWN_NAMES])}{more}; move it away (to "
            "download.source, if it is meant), then `dvc repro --force download` makes the folder anew"
        )
    for file in receipt["files"]:
        path = folder / file["path"]
        if not path.is_file() or file_digest(path) != file["md5"]:
            problem = "has other bytes than were downloaded" if path.is_file() else "is missing"
            raise StageError(f"{path} {problem}; `dvc repro --force download` brings it back")


def visible_files(folder: Path) -> list[str]:
    """The relative paths of all files that are not hidden: of those no dataset reads any."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def prepare_or_refuse(image: SourceImage, size: int) -> PreparedImage | DamagedImageError:
    """`prepare`, with the error as a result, so that it comes in the image's turn and need not end the others."""
    try:
        return prepare(image, size)
    except DamagedImageError as error:
        return error


def prepare(image: SourceImage, size: int) -> PreparedImage:
    """Decode, crop to the central square, and resize with antialiasing.

    Raises:
        DamagedImageError: the image cannot be decoded.
    """
    picture = decode(image, size)
    row = source_row(image) | {"original_width": picture.width, "original_height": picture.height}
    return PreparedImage(centre_cropped(picture, size), row)


def source_row(image: SourceImage) -> dict[str, Any]:
    """What is known of an image without decoding it."""
    content = image.content if isinstance(image.content, bytes) else image.content.tobytes()
    return {
        "number": image.number,
        "name": image.name,
        "class_number": image.class_number,
        "class_name": image.class_name,
        "split": image.split,
        "source_md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
    }


def decode(image: SourceImage, size: int) -> Picture:
    """Pixels of a source, upright, as RGB; what is transparent becomes white.

    A JPEG much larger than `size` is decoded at a reduced scale (see `MARGIN`), for which libjpeg transforms a part of
    each block alone. That changes the prepared pixels a little: those of photographs of 500×650 at 64 pixels by 0.2
    grey levels in the mean and 11 at most; where no more than `MARGIN` times the size remains, by less than 1 and 24.

    Raises:
        DamagedImageError: it is no image, or is damaged.
    """
    if not isinstance(image.content, bytes):
        pixels = Image.fromarray(image.content)
        return Picture(pixels, pixels.width, pixels.height, 1.0)
    try:
        opened = Image.open(io.BytesIO(image.content))
        width, height = opened.size
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        reduction = reduce_scale(opened, orientation, size)
        upright = rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:  # whose words hold an address in memory
        raise DamagedImageError(image, "of no format that Pillow knows") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedImageError(image, str(error)) from error
    if orientation in _TURNED_SIDEWAYS:
        width, height = height, width
    return Picture(upright, width, height, reduction)


def reduce_scale(opened: Image.Image, orientation: int, size: int) -> float:
    """Let a JPEG that is not yet decoded be so at a reduced scale; give the factor, 1 where it stays as it is."""
    width, height = opened.size
    # The last column and row of a reduced picture stand for less where the division leaves a rest. Turned over, they
    # come first, and would shift all others.
    if orientation != 1 and (width % _JPEG_BLOCK or height % _JPEG_BLOCK):
        return 1.0
    drafted = opened.draft(None, (MARGIN * size, MARGIN * size))  # None for formats that have no reduced scale
    return width / drafted[1][2] if drafted else 1.0


def rgb(picture: Image.Image) -> Image.Image:
    """Any mode as RGB, on white."""
    if picture.mode == "I;16":  # which Pillow would clip at 255, not scale
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def centre_cropped(picture: Picture, size: int) -> NDArray[np.uint8]:
    """The original's central square, resized by Pillow's bicubic filter, which antialiases when it shrinks."""
    side = min(picture.width, picture.height)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    edges = [edge / picture.reduction for edge in (left, top, left + side, top + side)]
    outer = (math.floor(edges[0]), math.floor(edges[1]), math.ceil(edges[2]), math.ceil(edges[3]))
    # Not resize's own box alone: its filter would reach for pixels beyond the square. Between the pixels of a reduced
    # picture the box finds the very edges.
    box = (edges[0] - outer[0], edges[1] - outer[1], edges[2] - outer[0], edges[3] - outer[1])
    square = picture.pixels.crop(outer)
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC, box=box))


def assigned_splits(index: pd.DataFrame, valid_fraction: float) -> list[str]:
    """A split for each image, by the digest of its source: it stays when other images come or go.

    The digest, read as a number in [0, 1), below `valid_fraction` is "valid", below twice that "test", else "train".
    """
    positions = index["source_md5"].map(lambda digest: int(digest[:13], 16) / 16**13)
    return ["valid" if p < valid_fraction else "test" if p < 2 * valid_fraction else "train" for p in positions]


def write_header(file: BinaryIO, count: int, size: int) -> None:
    """The head of images.npy, at its start; as numpy leaves room in it for any count, it may be written again."""
    file.seek(0)
    shape = (count, size, size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def write_table(name: str, table: pd.DataFrame) -> None:
    """A table of build/dataset/, a row an image."""
    with atomic_path(DATASET / name) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results in order, computed on all cores that this process may use; only a few items wait in memory.

    Threads are enough: Pillow decodes and resizes without Python's lock.
    """
    cores = len(os.sched_getaffinity(0))
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
