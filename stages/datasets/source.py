"""Interface between datasets and stages: fetching raw bytes and reading images from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.sections import DownloadParams

SplitName = Literal["train", "valid", "test"]


def list_visible_files(folder: Path) -> list[Path]:
    """Return the files in and below `folder`, sorted by relative path, without hidden files and folders."""
    paths = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    visible = [name for name in paths if not any(part.startswith(".") for part in name.parts)]
    return [paths[name] for name in sorted(visible, key=Path.as_posix)]


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
