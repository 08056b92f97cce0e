"""Interface between datasets and stages: fetching raw bytes and reading images from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.errors import StageError
from contract.sections import DownloadParams

SplitName = Literal["train", "valid", "test"]

_NUM_NAMES_SHOWN = 3


def find_source(source: str | None) -> Path | None:
    """Return the folder that download.source names, without links; None if it is an address, or null.

    Raises:
        StageError: it cannot be a path.
    """
    if source is None or is_address(source):
        return None
    try:
        return Path(source).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise StageError(f"download.source cannot be a path: {error}, got {source!r}") from None


def is_address(source: str) -> bool:
    """Return whether download.source names a place on the web, and not a folder."""
    return source.lower().startswith(("http://", "https://"))


def name_few(names: Sequence[str]) -> str:
    """Return the first names and the number of the others, for a message of one line."""
    shown = [name if name.isprintable() else ascii(name) for name in names[:_NUM_NAMES_SHOWN]]
    more = f" and {len(names) - _NUM_NAMES_SHOWN} more" if len(names) > _NUM_NAMES_SHOWN else ""
    return f"{', '.join(shown)}{more}"


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
