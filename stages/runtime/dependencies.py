"""Dependencies of a stage in dvc.yaml: whether they are still those that it ran with.

DVC hashes them when the stage has ended, and would record later edits as the code and data that made the result.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pathspec import GitIgnoreSpec

from contract.documents import read_mapping
from contract.errors import StageError, name_few
from contract.paths import DVC_FILE, DVC_IGNORE
from ddpm.files import file_digest
from stages import STARTED_NS

_WHAT_IS_KEPT = {"train": "; with the files as they were, it takes up its finished checkpoint and trains nothing again"}


class Dependencies:
    """Files that a stage depends on, as they were when this was made; none where no dvc.yaml names them.

    Raises:
        StageError: code has changed since Python began to read it.
    """

    def __init__(self, stage: str) -> None:
        self._stage, self._roots = stage, _list_roots(stage)
        self._digests = _read_digests(self._roots)
        loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
        code = [path for path in self._digests if str(path.absolute()) in loaded and path.is_file()]
        self._refuse([path for path in code if path.stat().st_ctime_ns > STARTED_NS], "started")

    def check(self) -> None:
        """Compare the files with those of before.

        Raises:
            StageError: a file has other bytes, is new or is gone.
        """
        before, now = self._digests, _read_digests(self._roots)
        self._refuse([path for path in sorted({*before, *now}) if before.get(path) != now.get(path)], "ran")

    def _refuse(self, changed: list[Path], when: str) -> None:
        if changed:
            names = name_few([str(path) for path in changed])
            kept = _WHAT_IS_KEPT.get(self._stage, "") if when == "ran" else ""
            raise StageError(f"{names} changed while {self._stage} {when}, so nothing is recorded: run it again{kept}")


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


def _read_digests(roots: list[Path]) -> dict[Path, str | None]:
    return {path: _read_digest(path) for path in _list_files(roots)}


def _read_digest(path: Path) -> str | None:
    try:
        return file_digest(path)
    except OSError:  # gone, or a link to nothing
        return None
