"""The pipeline's end alone: samples and figures of a model that has been trained, with other parameters."""

from prefect import flow

from contract.params import activate
from contract.stage_names import STAGES
from flows.forms import EvaluationOverrides
from flows.workspaces.experiments import STATE, UnknownRevisionError, commit_of
from flows.workspaces.git import file_in, git
from flows.workspaces.shared_cache import bring_outputs
from flows.workspaces.workspace import Workspace, opened
from tasks.evaluate import evaluate
from tasks.reference import reference
from tasks.sample import sample
from tasks.stage import log_failures_once

NEEDED = {"build/dataset": "the prepared dataset", "build/model": "the model"}
WITH_OUTPUTS = STAGES[1:-1]
"""Whose outputs are needed, or need not be made again where they are there."""


@flow(name="pipeline")
def evaluate_only(
    revision: str = "HEAD",
    params: EvaluationOverrides = EvaluationOverrides(),  # noqa: B008
) -> None:
    """Draw with a model that has been trained, and evaluate it; nothing is trained, nor registered.

    It runs in a worktree of the last commit, with the parameters, dataset and model of the revision, and is saved as a
    DVC experiment under the flow run's name.

    Args:
        revision: whose model: a branch, tag or commit of git, or a DVC experiment.
        params: what differs from its parameters.
    """
    log_failures_once()
    with opened("isolated") as place:
        take_model(place, revision)
        activate(None, params.model_dump(by_alias=True, exclude_unset=True))
        reference()
        sample()
        evaluate()


def take_model(place: Workspace, revision: str) -> None:
    """Bring parameters, lock, dataset and model of a revision into the workspace.

    Raises:
        UnknownRevisionError: there is no such revision, or nothing has been trained in it.
        NotCachedError: neither the DVC cache nor a remote holds its dataset and model.
    """
    commit = commit_of(place.checkout, revision)
    if file_in(place.checkout, commit, "dvc.lock") is None:
        raise UnknownRevisionError(f"revision {revision!r} holds no dvc.lock, so no model; name one that does")
    held = [path for path in STATE if file_in(place.checkout, commit, path) is not None]
    git(place.folder, "checkout", "--quiet", commit, "--", *held)
    bring_outputs(place.folder, NEEDED, WITH_OUTPUTS)
