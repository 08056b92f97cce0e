"""Where a flow run works: in the checkout, or in a git worktree of its own that shares the DVC cache with it."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from contract.params import PARAMS_FILE, PROFILES_FOLDER, activate, list_profiles
from flows.workspaces.experiments import experiment_name, free_names, save_experiment
from flows.workspaces.git import GitError, file_in, git
from flows.workspaces.shared_cache import bring_raw_data, share_cache
from tasks.locks import take

WorkspaceKind = Literal["checkout", "isolated"]

ProfileName = Annotated[str, Field(json_schema_extra={"enum": list_profiles()})]
"""A form offers the profiles that there are, and a server refuses others."""

FOLDER = Path("workspaces")
"""Of the worktrees, in the checkout; ignored by git and DVC."""

CHECKPOINTS = Path("build/checkpoints")
"""Shared, so that a training that was cancelled goes on in another worktree."""

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


class WorkspaceError(Exception):
    """An isolated workspace cannot be had; the message says why."""


@dataclass(frozen=True)
class Workspace:
    """Where a flow run works: the current directory of its process."""

    folder: Path
    checkout: Path
    """the same folder, where the run works in place"""

    def put_in_force(self, profile: str | None, overrides: Mapping[str, Any]) -> None:
        """Write the experiment's parameters, and bring the raw data of earlier runs with the same ones.

        Raises:
            ParamsError: they cannot be used; nothing is written.
            WorkspaceError: the images' directory is named as the checkout sees it, and this is another place.
        """
        params = activate(profile, overrides)
        if self.folder != self.checkout:
            _require_reachable(params.download.source)
            bring_raw_data(self.checkout, self.folder, params.section("download"))


@contextmanager
def opened(kind: WorkspaceKind) -> Iterator[Workspace]:
    """A place for the flow run in whose function this is called.

    "checkout" is the current directory. "isolated" is a new worktree of the last commit, which becomes the current
    directory; when the block ends well, its results are saved as a DVC experiment under the flow run's name; however
    the block ends, the worktree goes away.

    Raises:
        WorkspaceError: git cannot make a worktree.
    """
    checkout = Path.cwd()
    if kind == "checkout":
        yield Workspace(checkout, checkout)
        return
    logger, name = get_run_logger(), experiment_name(flow_run.name or "")
    if changed := uncommitted(checkout):
        logger.warning(
            "The checkout has changes that are not committed, which this isolated run does not see: %s", changed
        )
    with worktree(checkout, name) as folder, _working_in(folder, checkout):
        logger.info("Working in %s", folder.relative_to(checkout))
        yield Workspace(folder, checkout)
        saved = save_experiment(folder, name)
    logger.info("Saved as DVC experiment %s: `dvc exp apply %s` brings it into the checkout", saved, saved)


@contextmanager
def last_commit() -> Iterator[None]:
    """Inside the block, params.yaml and profiles/ are those of the last commit: what an isolated run starts from.

    Raises:
        WorkspaceError: there is no commit.
    """
    checkout = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            wanted = (str(PARAMS_FILE), str(PROFILES_FOLDER))
            for name in git(checkout, "ls-tree", "-r", "--name-only", "HEAD", "--", *wanted).splitlines():
                (Path(temporary) / name).parent.mkdir(exist_ok=True)
                (Path(temporary) / name).write_text(file_in(checkout, "HEAD", name) or "")
        except GitError as error:
            raise WorkspaceError(f"an isolated run starts from the last commit, and {error}") from None
        with contextlib.chdir(temporary):
            yield


def uncommitted(checkout: Path) -> str:
    """The tracked files that differ from the last commit, but for those that hold results."""
    with contextlib.suppress(GitError):  # which the worktree meets, too, and tells
        return ", ".join(git(checkout, "diff", "--name-only", "HEAD", "--", ".", ":!dvc.lock", ":!data.dvc").split())
    return ""


@contextmanager
def worktree(checkout: Path, name: str) -> Iterator[Path]:
    """A detached worktree of the last commit, with the DVC cache and the checkpoints of the checkout.

    A lock beside it says that its owner lives: it ends with the process, and with the stage that may outlive it for the
    moment in which it saves its work. Worktrees whose owner is gone are removed first.

    Raises:
        WorkspaceError: git cannot make one.
    """
    (checkout / FOLDER).mkdir(exist_ok=True)
    with contextlib.ExitStack() as owned:
        with _changing(checkout):
            remove_left_overs(checkout)
            folder = next(path for each in free_names(name) if not _lock_of(path := checkout / FOLDER / each).exists())
            lock = owned.enter_context(_lock_of(folder).open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.set_inheritable(lock.fileno(), True)
            owned.callback(_give_up, checkout, folder)
            _make(checkout, folder)
        yield folder


def remove_left_overs(checkout: Path) -> None:
    """Remove the worktrees of runs that were killed."""
    root = checkout / FOLDER
    folders = {path for path in root.iterdir() if path.is_dir()} | {
        path.with_suffix("") for path in root.glob("*.lock")
    }
    for folder in folders:
        with _lock_of(folder).open("a") as lock:
            if take(lock):
                _remove(checkout, folder)


def _make(checkout: Path, folder: Path) -> None:
    try:
        git(checkout, "worktree", "add", "--force", "--detach", str(folder), "HEAD")
    except GitError as error:
        raise WorkspaceError(f"an isolated run works in a git worktree of the last commit, and {error}") from None
    share_cache(checkout, folder)
    (checkout / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    (folder / CHECKPOINTS).parent.mkdir(exist_ok=True)
    (folder / CHECKPOINTS).symlink_to(checkout / CHECKPOINTS)


def _give_up(checkout: Path, folder: Path) -> None:
    with _changing(checkout):
        _remove(checkout, folder)


def _remove(checkout: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # also what git did not finish making
    with contextlib.suppress(GitError):  # where there is no repository
        git(checkout, "worktree", "prune")
    _lock_of(folder).unlink(missing_ok=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def _changing(checkout: Path) -> Iterator[None]:
    """One run at a time adds and removes worktrees."""
    with (checkout / FOLDER / ".changing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _working_in(folder: Path, checkout: Path) -> Iterator[None]:
    """The current directory is `folder`, and MLflow's runs go where those of the checkout go."""
    before = os.environ.get(TRACKING_VARIABLE)
    os.environ[TRACKING_VARIABLE] = _seen_from(checkout, before or "sqlite:///mlflow.db")
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        if before is None:
            del os.environ[TRACKING_VARIABLE]
        else:
            os.environ[TRACKING_VARIABLE] = before


def _seen_from(checkout: Path, address: str) -> str:
    """An address of MLflow that means the same in every folder: one within a worktree would go away with it."""
    for scheme in ("sqlite:///", "file:"):
        if address.startswith(scheme):
            return f"{scheme}{checkout / address.removeprefix(scheme)}"
    return address


def _require_reachable(source: str | None) -> None:
    if source is None or source.startswith(("http://", "https://", "~")) or Path(source).exists():
        return
    if not Path(source).is_absolute():
        raise WorkspaceError(
            f"download.source={source!r} is looked for in the worktree of an isolated run, which does not have it: "
            "give the whole path"
        )
