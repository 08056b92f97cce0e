"""The pipeline: the table of contents of the project. dvc.yaml names the same stages in the same order."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from prefect import flow

from contract.assignments import parse_overrides
from contract.params import Params, ParamsError, compose
from contract.stage_names import STAGES
from flows.by_hand import require_servers, run_to_completion
from flows.forms import Overrides
from flows.summary import summarise_results
from flows.workspaces.workspace import ProfileName, WorkspaceKind, enter_last_commit, open_workspace
from tasks.stage import log_failures_once
from tasks.stage_tasks import download, evaluate, preprocess, reference, register, sample, train


@flow(name="pipeline")
def pipeline(
    profile: ProfileName | None = None,
    params: Overrides = Overrides(),  # noqa: B008
    workspace: WorkspaceKind = "checkout",
) -> None:
    """Run all stages, from raw images to a registered model of flowers.

    Args:
        profile: saved experiment of profiles/; without it, params.yaml as it is.
        params: parameters that differ from it.
        workspace: checkout runs in the project's folder and leaves the results there; isolated runs the last commit in
            a git worktree of its own and saves the results as a DVC experiment under the flow run's name.
    """
    log_failures_once()
    with open_workspace(workspace) as place:
        place.activate(profile, params.model_dump(by_alias=True, exclude_unset=True))
        download()
        preprocess()
        reference()
        train()
        sample()
        evaluate()
        register()


def run_by_hand(profile: str | None, assignments: Sequence[str], isolated: bool) -> None:
    """Run the pipeline as `flowers run`, on a temporary server, unless everything in the checkout is up to date.

    Raises:
        FlowersError: the parameters or a server cannot be used, or the flow failed.
    """
    overrides = parse_overrides(list(assignments))
    # Bad parameters, and servers that cannot be used, are refused before anything changes: the flow itself writes.
    with enter_last_commit() if isolated else nullcontext():
        params = compose(profile, overrides)
    if not isolated and is_up_to_date(params):
        print(f"Everything is up to date with params.yaml (profile {params.profile}).")
        print(summarise_results())
        return
    require_servers()
    print(f"Running the pipeline on profile {params.profile}.", flush=True)
    workspace: WorkspaceKind = "isolated" if isolated else "checkout"
    run_to_completion("flowers run", lambda: pipeline(profile, Overrides(**overrides), workspace, return_state=True))
    if not isolated:
        print(summarise_results())


def is_up_to_date(params: Params) -> bool:
    """Return whether params.yaml holds these parameters, and DVC finds nothing to do for them."""
    try:
        if compose(None, {}) != params:
            return False
    except ParamsError:  # which a profile replaces
        return False
    status = [sys.executable, "-m", "dvc", "status", "--quiet", *STAGES]
    return subprocess.run(status, check=False).returncode == 0
