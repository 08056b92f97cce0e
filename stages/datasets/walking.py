"""Folders that people name and fill: found, walked and described."""

from collections.abc import Iterator
from pathlib import Path

from contract.errors import StageError


def find_source(source: str | None) -> Path | None:
    """Return the folder that download.source names, without links; None if it is an address, or null.

    Raises:
        StageError: it cannot be a path.
    """
    if source is None or source.lower().startswith(("http://", "https://")):
        return None
    try:
        path = Path(source).expanduser().resolve()
        path.exists()  # raises where the path cannot be one, or leads through a folder that cannot be read
    except (OSError, RuntimeError, ValueError) as error:
        raise StageError(f"download.source cannot be used as a path: {error}, got {source!r}") from None
    return path


def list_visible_entries(folder: Path) -> list[Path]:
    """Return what lies in and below `folder` and is not hidden, sorted by relative path: files, and what is none.

    Links to folders are followed, but those that lead back to a folder above: they are listed themselves.

    Raises:
        StageError: a folder cannot be read.
    """
    try:
        return sorted(_walk(folder, ()), key=lambda path: path.relative_to(folder).as_posix())
    except OSError as error:
        raise StageError(f"{error.filename} cannot be read: {error.strerror}") from None


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    state = folder.stat()
    identity = (state.st_dev, state.st_ino)
    if identity in above:
        yield folder
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, (*above, identity))
        else:
            yield path
