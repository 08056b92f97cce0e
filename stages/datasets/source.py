"""What a dataset gives to the stages: fetching its raw bytes, and reading images from them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.errors import StageError
from contract.sections import DownloadParams

SplitName = Literal["train", "valid", "test"]


class DatasetError(StageError):
    """A dataset cannot be fetched or read; the message says what was got, what is allowed and what to do."""


@dataclass(frozen=True)
class SourceImage:
    """One raw image and what is known of it."""

    number: int
    """1, 2, …, unique in the dataset"""
    name: str
    """for messages: a path, or a number"""
    content: bytes | NDArray[np.uint8]
    """an encoded file, or pixels of shape (height, width, 3)"""
    class_number: int
    class_name: str
    split: SplitName | None
    """None where the dataset has no official splits"""


class Dataset(Protocol):
    """A source of images."""

    is_immutable: bool
    """whether the same parameters must always give the same bytes"""

    def fetch(self, params: DownloadParams, folder: Path, previous: Path) -> None:
        """Put the raw bytes into the empty `folder`; verified files in `previous` need not be fetched again.

        Raises:
            DatasetError: they cannot be had, or are not what they should be.
        """

    def count(self, folder: Path) -> int:
        """How many images `fetch` left in `folder`."""

    def images(self, folder: Path) -> Iterator[SourceImage]:
        """The images in `folder`, one at a time, in a fixed order.

        Raises:
            DatasetError: the bytes cannot be read.
        """
