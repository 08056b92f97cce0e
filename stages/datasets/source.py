"""Interface between datasets and stages: fetching raw bytes and reading images from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.sections import DownloadParams

SplitName = Literal["train", "valid", "test"]

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
"""Formats that are decoded, by Pillow's names, and the suffixes of their files. Of several pictures in a file, such as
those of an animation, the first is taken."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)


@dataclass(frozen=True)
class SourceImage:
    """One raw image."""

    number: int
    """1, 2, …, unique in the dataset"""
    name: str
    """shown in messages: a path or a number"""
    content: bytes | NDArray[np.uint8]
    """an encoded file, or pixels of shape (height, width, 3)"""
    class_number: int
    class_name: str
    split: SplitName | None
    """None if the dataset has no official splits"""


class Dataset(Protocol):
    """A source of images."""

    is_immutable: bool
    """whether the same parameters must always give the same bytes"""

    def fetch(self, params: DownloadParams, folder: Path, previous: Path) -> None:
        """Put the raw bytes into the empty `folder`; verified files of `previous`, the last download, may be copied.

        Raises:
            StageError: the bytes are not available, or are not the expected ones.
        """

    def count(self, folder: Path) -> int:
        """Return the number of images in a `folder` that `fetch` filled."""

    def images(self, folder: Path) -> Iterator[SourceImage]:
        """Yield the images in `folder` one at a time, in a fixed order.

        Raises:
            StageError: the bytes cannot be read.
        """
