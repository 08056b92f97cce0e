"""Git worktrees for isolated runs: made from the last commit, and removed however the run ends."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from contract.errors import FlowersError
from contract.paths import CHECKPOINTS
from flows.workspaces.experiments import number_names
from flows.workspaces.git import GitError, git, try_git
from flows.workspaces.shared_cache import share_cache
from tasks.locks import try_lock

FOLDER = Path("workspaces")
"""Folder of the worktrees in the checkout; git and DVC ignore it."""


@contextmanager
def make_worktree(checkout: Path, name: str) -> Iterator[Path]:
    """Make a detached worktree of the last commit, with the DVC cache and the checkpoints of the checkout.

    A lock file beside it is held while the worktree is in use: by the run's process, and by its stage, which may
    outlive the run for the moment in which it saves its work. Worktrees of killed runs are removed first.

    Raises:
        FlowersError: git cannot make one.
    """
    (checkout / FOLDER).mkdir(exist_ok=True)
    changing = FileLock(checkout / FOLDER / ".changing")  # one run at a time adds and removes worktrees
    with changing:
        remove_left_overs(checkout)
        folders = (checkout / FOLDER / each for each in number_names(name))
        folder = next(path for path in folders if not path.exists() and not _lock_path(path).exists())
        lock = _lock_path(folder).open("w")
        try_lock(lock)
    os.set_inheritable(lock.fileno(), True)
    with lock:
        try:
            with changing:
                _add(checkout, folder)
            yield folder
        finally:
            with changing:
                _remove(checkout, folder)


def remove_left_overs(checkout: Path) -> None:
    """Remove the worktrees of killed runs; a folder without a lock file beside it is none of them."""
    for path in (checkout / FOLDER).glob("*.lock"):
        with path.open("a") as lock:
            if try_lock(lock):
                _remove(checkout, path.with_suffix(""))


def _add(checkout: Path, folder: Path) -> None:
    try:
        git(checkout, "worktree", "add", "--force", "--detach", str(folder), "HEAD")
    except GitError as error:
        raise FlowersError(f"an isolated run works in a git worktree of the last commit, and {error}") from None
    share_cache(checkout, folder)
    # Shared, so that a cancelled training continues in another worktree.
    (checkout / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    (folder / CHECKPOINTS).parent.mkdir(exist_ok=True)
    (folder / CHECKPOINTS).symlink_to(checkout / CHECKPOINTS)


def _remove(checkout: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # includes what git did not finish making
    try_git(checkout, "worktree", "prune")  # there may be no repository
    _lock_path(folder).unlink(missing_ok=True)


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
