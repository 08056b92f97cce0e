"""The place where a flow run works: the checkout, or a git worktree of its own that shares the DVC cache with it."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from contract.addresses import make_absolute
from contract.environment import CHECKOUT, REGISTRY_URI, TRACKING_URI, leave_repository
from contract.errors import FlowersError
from contract.git import git
from contract.params import activate
from contract.paths import DATA_PIN, DVC_LOCK, PARAMS_FILE, PROFILES_FOLDER, list_profiles
from flows.workspaces.experiments import make_experiment_name, save_experiment
from flows.workspaces.git import find_last_commit, read_file_at
from flows.workspaces.shared_cache import bring_raw_data
from flows.workspaces.worktrees import make_worktree

WorkspaceKind = Literal["checkout", "isolated"]

ProfileName = Annotated[str, Field(json_schema_extra={"enum": list_profiles()})]
"""Name of a profile. A form offers those that exist, and a server refuses others."""


@dataclass(frozen=True)
class Workspace:
    """The folder in which a flow run works: the current directory of its process."""

    folder: Path
    checkout: Path
    """the same folder, if the run works in place"""

    def activate(self, profile: str | None, overrides: Mapping[str, Any]) -> None:
        """Write the parameters into params.yaml, and bring the raw data of earlier runs with the same ones.

        Raises:
            ParamsError: they cannot be used; nothing is written.
            FlowersError: download.source is a relative path, which this worktree does not have.
        """
        params = activate(profile, overrides)
        if self.folder != self.checkout:
            source = params.download.source
            if source and not (source.startswith(("http://", "https://", "~", "/")) or Path(source).exists()):
                raise FlowersError(
                    f"download.source={source!r} is a relative path, which the worktree of an isolated run does not "
                    "have: give the absolute path"
                )
            bring_raw_data(self.checkout, self.folder, params.section("download"))


@contextmanager
def open_workspace(kind: WorkspaceKind) -> Iterator[Workspace]:
    """Open the place for the flow run that calls this.

    "checkout" is the current directory. "isolated" is a new worktree of the last commit, which becomes the current
    directory. When the block ends without an error, its results are saved as a DVC experiment under the flow run's
    name; however it ends, the worktree is removed.

    Raises:
        FlowersError: git cannot make a worktree.
    """
    leave_repository()  # at every door: a worker, too, may have been started by a git hook
    checkout = Path.cwd()
    if kind == "checkout":
        yield Workspace(checkout, checkout)
        return
    logger, name = get_run_logger(), make_experiment_name(flow_run.name or "")
    results = (f":!{DVC_LOCK}", f":!{DATA_PIN}")  # which may differ
    commit = find_last_commit(checkout)
    if changed := git(checkout, "diff", "--name-only", "--relative", commit, "--", ".", *results):
        changes = ", ".join(changed.splitlines())
        logger.warning("This isolated run does not see the uncommitted changes of the checkout: %s", changes)
    with make_worktree(checkout, name, logger) as folder, _work_in(folder, checkout):
        logger.info("Working in %s", folder.relative_to(checkout))
        yield Workspace(folder, checkout)
        saved = save_experiment(folder, name)
    logger.info("Saved as DVC experiment %s: `dvc exp apply %s` brings it into the checkout", saved, saved)


@contextmanager
def enter_last_commit() -> Iterator[None]:
    """Make params.yaml and profiles/ those of the last commit, from which an isolated run starts."""
    checkout = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        commit, places = find_last_commit(checkout), (str(PARAMS_FILE), str(PROFILES_FOLDER))
        for name in git(checkout, "ls-tree", "-r", "-z", "--name-only", commit, "--", *places).split("\0"):
            if name:
                path = Path(temporary, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(read_file_at(checkout, commit, name) or "", errors="surrogateescape")
        with contextlib.chdir(temporary):
            yield


@contextmanager
def _work_in(folder: Path, checkout: Path) -> Iterator[None]:
    """Make `folder` the current directory, and let MLflow record runs where the checkout's runs are recorded."""
    before = {name: os.environ.get(name) for name in (CHECKOUT, TRACKING_URI, REGISTRY_URI)}
    address, registry = before[TRACKING_URI] or "sqlite:///mlflow.db", before[REGISTRY_URI]
    # A store inside the worktree would be removed with it.
    os.environ |= {CHECKOUT: str(checkout), TRACKING_URI: make_absolute(address, checkout)}
    if registry:
        os.environ[REGISTRY_URI] = make_absolute(registry, checkout)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
