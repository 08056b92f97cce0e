"""Let MLflow's database follow its files when the project is moved or copied: it names their places absolutely."""

import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from contract.addresses import make_absolute
from contract.environment import find_project
from contract.errors import StageError
from contract.events import report

ARTIFACTS = "mlartifacts"
"""Folder of MLflow's files, beside its database."""

EXPERIMENT = "flowers-ddpm"
"""Name of the MLflow experiment that holds all runs of the project."""

_FOLDERS = (ARTIFACTS, "mlruns")  # that of MLflow's own default experiment

_PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Columns that hold places, by their tables."""

_WAIT_SECONDS = 60.0


def follow_files(database: Path) -> None:
    """Make the places in a database those beside it, where it has been moved or copied together with its files.

    All places change in one transaction. Files are left alone, those at the old place as well.

    Raises:
        StageError: the database cannot be read or written.
    """
    old, here = _find_old_root(database), database.parent / ARTIFACTS
    if old is None or (old.is_dir() and not here.is_dir()) or _is_chosen(old, database):
        return
    _rewrite(database, old, database.parent)
    text = f"tracking: {database} comes from {old}: its files are now those in {here}"
    if (old / ARTIFACTS).is_dir() and not _is_copy(old, database):  # written after the move, by an older release
        text += f"; `cp -rn '{old / ARTIFACTS}/.' '{here}'` brings those that were written there since"
    report("warning", text)


def require_own_files(database: Path) -> None:
    """Refuse a database that has come from another project without its files: new ones would be written there.

    Raises:
        StageError: it has, or cannot be read.
    """
    old = _find_old_root(database)
    if old is None:
        return
    there, here = old / ARTIFACTS, database.parent / ARTIFACTS
    if _is_copy(old, database) or not there.is_dir():  # otherwise people keep files there, apart from the database
        raise StageError(
            f"{database} has come here without its files, and new ones would go to {there}, outside of this project: "
            f"`cp -r '{there}' '{here}'` brings them, `mkdir '{here}'` begins without them"
        )


def find_database(address: str) -> Path | None:
    """Return the file of the database that an address of MLflow means; None where it means no file."""
    found = re.match(r"sqlite(?:\+\w+)?:///(/[^?]+)", make_absolute(address, find_project()))
    return Path(unquote(found[1])) if found else None


@contextmanager
def _open(database: Path) -> Iterator[sqlite3.Connection]:
    address = f"{database.as_uri()}?mode=rw"  # an existing one
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=_WAIT_SECONDS, isolation_level=None)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise StageError(f"{database} cannot be used as MLflow's database: {error}; mend it or move it away") from error


def _is_copy(old: Path, database: Path) -> bool:
    return (old / database.name).is_file()


def _is_chosen(old: Path, database: Path) -> bool:
    """Return whether people keep the files elsewhere: they lie there, and those of no run beside the database."""
    if _is_copy(old, database) or not (old / ARTIFACTS).is_dir():
        return False
    with _open(database) as connection:
        rows = connection.execute("SELECT artifact_uri FROM runs").fetchall()
    places = [path for (address,) in rows if (path := _as_path(address or "")) and path.is_relative_to(old)]
    return not any((database.parent / path.relative_to(old)).is_dir() for path in places)


def _find_old_root(database: Path) -> Path | None:
    """Return the folder beside whose database the files of the experiment lay; None where it is that of `database`."""
    if not database.exists():
        return None
    with _open(database) as connection:
        if "experiments" not in _tables(connection):  # a new one
            return None
        rows = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", [EXPERIMENT]).fetchall()
    for (location,) in rows:
        place = _as_path(location or "")
        if place and ARTIFACTS in (place.name, place.parent.name):  # a server adds the number of the experiment
            root = place.parent if place.name == ARTIFACTS else place.parent.parent
            if root.resolve() != database.parent.resolve():
                return root
    return None


def _rewrite(database: Path, old: Path, new: Path) -> None:
    def follow(place: str | None) -> str | None:
        path = _as_path(place or "")
        if path is None or not any(path.is_relative_to(old / name) for name in _FOLDERS):
            return place
        return (new / path.relative_to(old)).as_uri()

    with _open(database) as connection:
        connection.create_function("follow", 1, follow)
        connection.execute("BEGIN IMMEDIATE")
        for table in _PLACES.keys() & _tables(connection):
            known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            for column in known.intersection(_PLACES[table]):
                connection.execute(f"UPDATE {table} SET {column} = follow({column})")
        connection.execute("COMMIT")


def _as_path(location: str) -> Path | None:
    """Return the folder on this machine that a place means; None for one elsewhere."""
    if location.startswith("/"):
        return Path(location)
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.scheme == "file" and not parts.netloc else None


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


if __name__ == "__main__":  # `make mlflow`, before MLflow's own program reads the database
    if found := find_database("sqlite:///mlflow.db"):
        try:
            follow_files(found)
        except StageError as error:
            sys.exit(str(error))
