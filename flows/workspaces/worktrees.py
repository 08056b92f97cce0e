"""Git worktrees for isolated runs: made from the last commit, and removed however the run ends.

A folder is removed only where it is known as a run's: its lock file, which a run has written, names its commit, git
lists it as a worktree of this repository, and it holds nothing but that commit and what a run makes of it.
"""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock

from contract import paths
from contract.errors import FlowersError, name_few
from contract.git import GitError, git
from flows.workspaces.experiments import STATE, number_names
from flows.workspaces.git import find_last_commit, try_git
from flows.workspaces.shared_cache import share_cache
from tasks.locks import try_lock
from tasks.run_page import Log

FOLDER = Path("workspaces")
"""Folder of the worktrees in the checkout; git and DVC ignore it."""

LOGGER = logging.getLogger(__name__)
"""Takes warnings where no flow run does."""

_MADE_BY_RUNS = (
    *STATE, ".dvc/cache", ".dvc/config.local", ".dvc/tmp",
    *map(str, (paths.DATA, paths.DOWNLOADS, paths.RECEIPT, paths.DATASET, paths.REFERENCE, paths.CHECKPOINTS)),
    *map(str, (paths.STAGED_RECEIPT, paths.FORMER_PIN, paths.DOWNLOAD_LOCK)),
    f".{paths.DATA}.incoming", f".{paths.DATA}.outgoing",
    *map(str, (paths.PREVIEWS, paths.MODEL, paths.LOSSES, paths.SAMPLES, paths.METRICS, paths.EVALUATION)),
)  # fmt: skip
"""Files and folders that a run changes or makes."""

_OWNER = "worktree of an isolated run, from commit "
"""Beginning of a lock file; the digest of the commit follows."""

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\..+)?")
"""Name of a file that a killed stage has not finished; see `ddpm.files.atomic_path`."""


@contextmanager
def make_worktree(checkout: Path, name: str, logger: Log = LOGGER) -> Iterator[Path]:
    """Make a detached worktree of the last commit, with the DVC cache and the checkpoints of the checkout.

    A lock file beside it is held while the worktree is in use: by the run's process, and by its stage, which may
    outlive the run for the moment in which it saves its work. Worktrees of killed runs are removed first.

    Args:
        checkout: folder of the project, which may be a part of its repository.
        name: name of the worktree; it gets a number where the name is taken.
        logger: takes the warning about a worktree that stays, since it holds what no run makes.

    Yields:
        The folder of the project in the worktree.

    Raises:
        FlowersError: git cannot make one.
    """
    commit = find_last_commit(checkout)
    changing = FileLock(checkout / FOLDER / ".changing")  # one run at a time adds and removes worktrees
    try:
        (checkout / FOLDER).mkdir(exist_ok=True)
        with changing:
            remove_left_overs(checkout, logger)
            folders = (checkout / FOLDER / each for each in number_names(name))
            folder = next(each for each in folders if not (os.path.lexists(each) or os.path.lexists(_lock_path(each))))
            lock = _lock_path(folder).open("x")
            try_lock(lock)
            lock.write(f"{_OWNER}{commit}\n")
            lock.flush()
    except OSError as error:  # a file or a link to nothing in its place, no permission, a full disk
        raise FlowersError(f"an isolated run cannot work in {checkout / FOLDER}: {error}") from None
    os.set_inheritable(lock.fileno(), True)
    with lock:
        try:
            with changing:
                project = _add(checkout, folder, commit)
            yield project
        finally:
            with changing:
                _remove(checkout, folder, commit, logger)


def remove_left_overs(checkout: Path, logger: Log = LOGGER) -> None:
    """Remove the worktrees of killed runs, and nothing else."""
    for path in (checkout / FOLDER).glob("*.lock"):
        if commit := _read_lock(path):
            with path.open("a") as lock:
                if try_lock(lock):
                    _remove(checkout, path.with_suffix(""), commit, logger)


def find_others_work(folder: Path, commit: str, project: str) -> list[str]:
    """Return what a worktree holds beside its commit and what a run makes of it: files, changes and commits of people.

    Args:
        folder: the worktree.
        commit: the commit that it was made from.
        project: folder of the project in it, which ends with a slash; empty, where it is the whole worktree.

    Raises:
        GitError: git cannot tell.
    """
    if not any(folder.iterdir()):
        return []
    if not (folder / ".git").is_file():  # git would answer for the repository around it
        raise GitError("its file .git is missing")
    if git(folder, "rev-parse", "HEAD") != commit:
        return ["commits"]
    with tempfile.TemporaryDirectory() as temporary:
        # An index of its own: that of a worktree which was not finished lacks files.
        index = {"GIT_INDEX_FILE": str(Path(temporary, "index"))}
        git(folder, "read-tree", commit, environment=index)
        status = ("status", "--porcelain", "-z", "--no-renames", "--ignored", "--untracked-files=all")
        entries = git(folder, *status, environment=index).split("\0")
    found = [(entry[:2], entry[3:]) for entry in entries if entry]
    return [path for state, path in found if "D" not in state and not _is_made_by_run(path, project)]


def _is_made_by_run(path: str, project: str) -> bool:
    place = PurePosixPath(path)
    if "__pycache__" in place.parts or _TEMPORARY.fullmatch(place.name):
        return True
    return any(place.is_relative_to(project + made) for made in _MADE_BY_RUNS)


def _add(checkout: Path, folder: Path, commit: str) -> Path:
    try:
        git(checkout, "worktree", "add", "--force", "--detach", str(folder), commit)
        project = folder / git(checkout, "rev-parse", "--show-prefix")
    except GitError as error:
        raise FlowersError(f"an isolated run works in a git worktree of the last commit, and {error}") from None
    share_cache(checkout, project)
    # Shared, so that a cancelled training continues in another worktree.
    (checkout / paths.CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    (project / paths.CHECKPOINTS).parent.mkdir(exist_ok=True)
    (project / paths.CHECKPOINTS).symlink_to(checkout / paths.CHECKPOINTS)
    return project


def _remove(checkout: Path, folder: Path, commit: str, logger: Log) -> None:
    """Remove a run's worktree and its lock, or say why they stay."""
    if reason := _why_kept(checkout, folder, commit):
        logger.warning(
            "%s stays: %s; to remove it yourself: `git worktree remove --force '%s'`, then delete %s",
            *(folder, reason, folder, _lock_path(folder)),
        )
        return
    _delete(folder)
    if os.path.lexists(folder):
        logger.warning("%s cannot be removed wholly; the next isolated run tries it again", folder)
        return
    try_git(checkout, "worktree", "remove", "--force", "--force", str(folder))  # git may not have listed it yet
    _lock_path(folder).unlink(missing_ok=True)


def _delete(folder: Path) -> None:
    """Delete a worktree as far as possible, .git last: what a kill in between leaves is still known as a worktree."""
    for path in folder.glob("*"):
        if path.name != ".git" and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _why_kept(checkout: Path, folder: Path, commit: str) -> str | None:
    """Return why a folder is not to be removed; None for a run's worktree that holds nothing else."""
    if not os.path.lexists(folder):
        return None
    try:
        listed = git(checkout, "worktree", "list", "--porcelain").splitlines()
        if folder.is_symlink() or f"worktree {folder.resolve()}" not in listed:
            return "git does not list it as a worktree of this checkout"
        others = find_others_work(folder, commit, git(checkout, "rev-parse", "--show-prefix"))
    except (GitError, OSError) as error:
        return str(error)
    return f"it holds what no run makes, {name_few(others)}" if others else None


def _read_lock(path: Path) -> str | None:
    """Return the commit that a run's lock file names; None for a file that no run has written."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text.removeprefix(_OWNER).strip() if text.startswith(_OWNER) else None


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
