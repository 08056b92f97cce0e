"""Files that are either whole or absent."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block, flush the file written there and rename it to `path`.

    Readers see the old file or the new one, never half of one, even if the machine stops. If the block raises, the
    temporary file is deleted and `path` stays as it was. The mode is that of any new file.

    Raises:
        OSError: the file cannot be written, such as on a full disk; it names `path`.
    """
    # Keep the suffix: some writers choose the format by it, or append one if it is missing.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _mode_of_new_file(temporary)
        yield temporary
        with temporary.open("rb") as written:
            os.fchmod(written.fileno(), mode)
            os.fsync(written.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
        raise OSError(number, os.strerror(number) if number else str(error), str(path)) from error
    except OSError as error:
        if type(error) is OSError and error.filename is None:  # numpy gives no number: "8192 requested and 0 written"
            raise OSError(error.errno, error.strerror or f"it cannot be written whole ({error})", str(path)) from error
        if error.filename == str(temporary):
            error.filename = str(path)  # the name that people know
        raise
    finally:
        with suppress(OSError):  # such as where the folder could not be made
            temporary.unlink(missing_ok=True)


def file_digest(path: Path, algorithm: str = "md5") -> str:
    """Return the hexadecimal digest of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mode_of_new_file(path: Path) -> int:
    """Return the mode that the user's umask gives; safetensors writes files that others cannot read."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    path.unlink()
    return mode
