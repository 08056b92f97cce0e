"""Turn the images of a dataset into one uint8 array on disk and a row of the index for each.

Images stream from the dataset to the array; only their rows stay in memory.
"""

import hashlib
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from contract.errors import StageError
from contract.sections import PreprocessParams
from ddpm.files import atomic_path
from stages.datasets.decoding import UndecodableImageError, crop_centre, decode
from stages.datasets.source import SourceImage
from stages.runtime.reporting import progress_bar

SOURCE_COLUMNS = ("number", "name", "class_number", "class_name", "split")

Row = dict[str, Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


def prepare(image: SourceImage, size: int) -> tuple[NDArray[np.uint8], Row] | UndecodableImageError:
    """Return the pixels of an image, shape (size, size, 3), and its row of the index.

    The error of a damaged image is returned, so that the other images still come.
    """
    try:
        picture = decode(image, size)
    except UndecodableImageError as error:
        return error
    row = describe_source(image) | {"original_width": picture.width, "original_height": picture.height}
    return crop_centre(picture, size), row


def describe_source(image: SourceImage) -> Row:
    """Return the columns of the index that are known without decoding the image."""
    content = image.content if isinstance(image.content, bytes) else image.content.tobytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return {name: getattr(image, name) for name in SOURCE_COLUMNS} | {"source_md5": digest}


def write_images(
    path: Path, images: Iterable[SourceImage], count: int, params: PreprocessParams
) -> tuple[list[Row], list[Row]]:
    """Write the array of about `count` images as a .npy file.

    Returns:
        Rows of the images in the array, and rows of the damaged images that were skipped.

    Raises:
        UndecodableImageError: an image cannot be decoded and `params.skip_damaged` is false.
        StageError: no image can be decoded.
    """
    rows: list[Row] = []
    skipped: list[Row] = []
    bar = progress_bar("preprocess", count, "images")
    # Pillow warns of metadata that it cannot read, without naming the file.
    with warnings.catch_warnings(action="ignore"), bar, atomic_path(path) as temporary, temporary.open("wb") as file:
        _write_header(file, count, params.image_size)
        for prepared in parallel_map(partial(prepare, size=params.image_size), images):
            if not isinstance(prepared, UndecodableImageError):
                pixels, row = prepared
                file.write(pixels.tobytes())
                rows.append(row)
            elif params.skip_damaged:
                skipped.append(describe_source(prepared.image) | {"reason": prepared.reason})
            else:
                raise prepared
            bar.update()
        if skipped and not rows:
            raise StageError(f"none of the {len(skipped)} images can be decoded; the first: {skipped[0]['reason']}")
        _write_header(file, len(rows), params.image_size)
    return rows, skipped


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield results in order, computed on all cores that this process may use; only a few items wait in memory.

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


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    # numpy pads the header, so that it can be written again with another count.
    file.seek(0)
    shape = (count, size, size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
