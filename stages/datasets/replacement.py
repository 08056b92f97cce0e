"""Replace data/ by new bytes as a whole or not at all, and never what people put there."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from contract.errors import StageError, name_few
from contract.paths import BUILD, DATA, DATA_PIN, DOWNLOAD_LOCK, FORMER_PIN, RECEIPT, STAGED_RECEIPT
from ddpm.files import atomic_path, file_digest
from stages.datasets.pin import Receipt, list_pinned_files, list_received_files
from stages.datasets.walking import find_source
from stages.runtime.outputs import write_json
from stages.runtime.reporting import say


@dataclass
class RawData:
    """The raw data, and the folders beside them in which the next and the former ones wait."""

    folder: Path
    """data/, or the folder that it is a link to"""
    checked: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """what tells whether a file was changed since it was found to be none of people's own"""

    @property
    def incoming(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.incoming")

    @property
    def outgoing(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.outgoing")

    def prepare(self) -> None:
        """Make the empty incoming folder, once nothing stands in the way of replacing the data.

        Raises:
            StageError: they hold files that no download put there, or cannot be moved.
        """
        self.refuse_own_files()
        try:
            if self.undo_unfinished():
                self.refuse_own_files()
            shutil.rmtree(self.outgoing, ignore_errors=True)
            shutil.rmtree(self.incoming, ignore_errors=True)
            self.folder.mkdir(exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, "it is read-only")
            self.folder.rename(self.outgoing)  # whether it can be moved is found out now, and not after hours
            self.outgoing.rename(self.folder)
            self.incoming.mkdir()
        except OSError as error:
            raise StageError(
                f"{self.folder} cannot be replaced as a whole: {error.strerror}. Make {DATA} a folder, or a symbolic "
                "link to a folder, that is no mount point itself and lies in one that you may write to"
            ) from None

    def refuse_own_files(self) -> None:
        """Check that the data hold only what downloads put there.

        Raises:
            StageError: there are other or changed files.
        """
        own = _find_unknown(self.folder, list_received_files())
        if own:  # as in a clone after `dvc pull`
            own = _find_unknown(self.folder, list_received_files() | list_pinned_files())
        if own:
            raise StageError(
                f"{DATA} holds files that download did not put there: {name_few(own)}. They would be lost, so nothing "
                f"is changed: move them out of {DATA} (to use them, into the folder of download.source), then run it "
                "again"
            )
        self.checked = _take_snapshot(self.folder)

    @contextmanager
    def exchange(self, receipt: Receipt) -> Iterator[None]:
        """Put the incoming data in place of the former ones and, when the block has ended, write the receipt.

        If anything fails, also in the block, data/, data.dvc and the receipt are the former ones again. If the program
        is killed, the next download brings the former data back: until the receipt has its name, nothing is final.

        Raises:
            StageError: data/ was changed since it was checked.
        """
        shutil.copymode(self.folder, self.incoming)
        try:
            with atomic_path(FORMER_PIN) as temporary:
                temporary.write_bytes(DATA_PIN.read_bytes() if DATA_PIN.exists() else b"")
            write_json(STAGED_RECEIPT, receipt)
            self.folder.rename(self.outgoing)
            if _take_snapshot(self.outgoing) != self.checked:
                raise StageError(f"{DATA} was changed while download ran, so it is not replaced: run it again")
            self.incoming.rename(self.folder)
            yield
            STAGED_RECEIPT.replace(RECEIPT)
        except BaseException:
            self.undo_unfinished()
            raise
        FORMER_PIN.unlink(missing_ok=True)
        shutil.rmtree(self.outgoing, ignore_errors=True)

    def undo_unfinished(self) -> bool:
        """Bring the former data and pin back if an exchange did not end, and return whether; it can be killed, too."""
        is_staged = STAGED_RECEIPT.exists()
        is_moved = self.outgoing.exists() and (is_staged or not self.folder.exists())
        if is_moved:
            if self.folder.exists():
                self.folder.rename(self.incoming)
            self.outgoing.rename(self.folder)
        if is_staged and FORMER_PIN.exists():
            if FORMER_PIN.read_bytes():
                FORMER_PIN.replace(DATA_PIN)
            else:
                DATA_PIN.unlink(missing_ok=True)
        STAGED_RECEIPT.unlink(missing_ok=True)
        FORMER_PIN.unlink(missing_ok=True)
        return is_moved


@contextmanager
def receive_data(source: str | None) -> Iterator[RawData]:
    """Yield the raw data with an empty incoming folder, which no other download uses; remove what is left of it.

    Args:
        source: download.source.

    Raises:
        StageError: data/ cannot be replaced; `source` lies in it or holds it; in the block, a file cannot be read or
            written.
    """
    with _work_alone():
        data = _find_data()
        _refuse_source(source, data)
        data.prepare()
        try:
            yield data
        except OSError as error:  # such as a full disk
            raise StageError(f"{DATA} stays as it was: {error}") from None
        finally:
            shutil.rmtree(data.incoming, ignore_errors=True)


@contextmanager
def _work_alone() -> Iterator[None]:
    lock = FileLock(DOWNLOAD_LOCK)
    try:
        BUILD.mkdir(exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        say("download", "another download works here; waiting for its end")
        lock.acquire()
    except OSError as error:
        raise StageError(f"{BUILD} must be a folder that you may write to: {error}") from None
    try:
        yield
    finally:
        lock.release()


def _find_data() -> RawData:
    if DATA.is_symlink() and not DATA.is_dir():
        raise StageError(
            f"{DATA} is a link to {DATA.readlink()}, which is no folder; make that folder (or mount its disk), or "
            "remove the link"
        )
    if DATA.exists() and not DATA.is_dir():
        raise StageError(f"{DATA} must be a folder or a link to one, and is a file; move it away")
    return RawData(DATA.resolve())


def _refuse_source(source: str | None, data: RawData) -> None:
    path = find_source(source)
    for own in (DATA.absolute(), data.folder, data.incoming, data.outgoing):
        if path and (path.is_relative_to(own) or own.is_relative_to(path)):
            raise StageError(
                f"download.source must lie outside of {DATA}, which each download replaces, and must not hold it, got "
                f"{source}; give another folder"
            )


def _find_unknown(folder: Path, known: set[tuple[str, str]]) -> list[str]:
    """Return the names of the files whose path and md5 are not known."""
    names, unknown = {name for name, _ in known}, []
    for name, path in _list_entries(folder):
        if name not in names:
            unknown.append(name)
        elif not path.is_file() or (name, file_digest(path)) not in known:
            unknown.append(f"{name} (changed since)")
    return unknown


def _list_entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield relative and whole path of all but folders; a link to a folder is an entry and is not followed."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise StageError(f"{error.filename} cannot be read: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders.sort()
        links = [name for name in folders if Path(root, name).is_symlink()]
        for path in (Path(root, name) for name in sorted([*links, *files])):
            yield path.relative_to(folder).as_posix(), path


def _take_snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    states = {name: path.lstat() for name, path in _list_entries(folder)}
    return {name: (state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states.items()}
