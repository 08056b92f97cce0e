"""Dependencies of a stage in dvc.yaml: whether they are still those that it ran with.

DVC hashes them when the stage has ended, and would record later edits as the code and data that made the result.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathspec import GitIgnoreSpec

from contract.documents import read_mapping
from contract.errors import StageError
from contract.paths import DVC_FILE, DVC_IGNORE
from ddpm.files import file_digest
from stages import STARTED_NS

_NUM_NAMES_SHOWN = 5

_WHAT_IS_KEPT = {"train": "; with the files as they were, it takes up its finished checkpoint and trains nothing again"}


@dataclass(frozen=True)
class FileState:
    """State of a file."""

    stamp: tuple[int, ...]
    """differs after every edit, and after `touch`"""
    digest: str


class Dependencies:
    """Files that a stage depends on, as they were when this was made; none where no dvc.yaml names them.

    Raises:
        StageError: code has changed since Python began to read it.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._roots = _list_roots(stage)
        self._states = {path: _read_state(path) for path in _list_files(self._roots)}
        loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        code = [path for path in self._states if str(path.absolute()) in loaded]
        self._refuse([path for path in code if path.is_file() and path.stat().st_ctime_ns > STARTED_NS], "started")

    def check(self) -> None:
        """Compare the files with those of before.

        Raises:
            StageError: a file has other bytes, is new or is gone.
        """
        paths = sorted({*_list_files(self._roots), *self._states})
        self._refuse([path for path in paths if _has_changed(path, self._states.get(path))], "ran")

    def _refuse(self, changed: list[Path], when: str) -> None:
        if changed:
            names = ", ".join(map(str, changed[:_NUM_NAMES_SHOWN]))
            more = f" and {len(changed) - _NUM_NAMES_SHOWN} more" if len(changed) > _NUM_NAMES_SHOWN else ""
            kept = _WHAT_IS_KEPT.get(self._stage, "") if when == "ran" else ""
            raise StageError(
                f"{names}{more} changed while {self._stage} {when}, so nothing is recorded: run it again{kept}"
            )


def _list_roots(stage: str) -> list[Path]:
    """Return the files and folders that dvc.yaml names as dependencies of a stage."""
    if not DVC_FILE.is_file():
        return []
    entries: list[Any] = read_mapping(DVC_FILE).get("stages", {}).get(stage, {}).get("deps", [])
    return [Path(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]


def _list_files(roots: list[Path]) -> Iterator[Path]:
    """Yield the files that DVC hashes: those of .dvcignore are left out."""
    lines = DVC_IGNORE.read_text("utf-8").splitlines() if DVC_IGNORE.is_file() else []
    ignored = GitIgnoreSpec.from_lines([*lines, "__pycache__/"])
    for root in roots:
        if not root.is_dir():
            yield root
        for folder, _, names in os.walk(root):
            yield from (path for name in names if not ignored.match_file(path := Path(folder, name)))


def _read_state(path: Path) -> FileState | None:
    try:
        return FileState(_stamp(path.stat()), file_digest(path))
    except OSError:  # gone, or a link to nothing
        return None


def _has_changed(path: Path, before: FileState | None) -> bool:
    """Return whether a file is another one; its bytes are read only where something has touched it."""
    if before and path.exists() and _stamp(path.stat()) == before.stamp:
        return False
    after = _read_state(path)
    return (before and before.digest) != (after and after.digest)


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
