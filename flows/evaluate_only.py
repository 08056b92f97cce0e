"""The end of the pipeline: samples and metrics of a trained model, with other parameters."""

from prefect import flow

from contract.errors import FlowersError
from contract.git import git
from contract.params import activate
from contract.paths import DATASET, DVC_LOCK, MODEL
from contract.stage_names import STAGES
from flows.forms import EvaluationOverrides
from flows.workspaces.experiments import STATE, find_commit
from flows.workspaces.git import read_file_at
from flows.workspaces.shared_cache import bring_outputs
from flows.workspaces.workspace import Workspace, open_workspace
from tasks.stage import log_failures_once
from tasks.stage_tasks import evaluate, reference, sample

REQUIRED = {DATASET: "the prepared dataset", MODEL: "the model"}


@flow(name="pipeline")
def evaluate_only(
    revision: str = "HEAD",
    params: EvaluationOverrides = EvaluationOverrides(),  # noqa: B008
) -> None:
    """Draw with a trained model and evaluate it; nothing is trained or registered.

    It runs in a git worktree of the last commit, with the parameters, dataset and model of the revision, and is saved
    as a DVC experiment under the flow run's name.

    Args:
        revision: branch, tag or commit of git, or DVC experiment that holds the model.
        params: parameters that differ from those of the revision.
    """
    log_failures_once()
    with open_workspace("isolated") as place:
        take_model(place, revision)
        activate(None, params.model_dump(by_alias=True, exclude_unset=True))
        reference()
        sample()
        evaluate()


def take_model(place: Workspace, revision: str) -> None:
    """Bring parameters, lock, dataset and model of a revision into the workspace.

    Raises:
        FlowersError: there is no such revision, nothing has been trained in it, or neither the DVC cache nor a remote
            holds its dataset and model.
    """
    commit = find_commit(place.checkout, revision)
    if read_file_at(place.checkout, commit, str(DVC_LOCK)) is None:
        raise FlowersError(f"revision {revision!r} has no dvc.lock and so no model; name one that has")
    present = [path for path in STATE if read_file_at(place.checkout, commit, path) is not None]
    git(place.folder, "checkout", "--quiet", commit, "--", *present)
    bring_outputs(place.folder, REQUIRED, STAGES[1:-1])  # all that this flow needs, or need not make again
