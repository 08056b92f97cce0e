"""Record an experiment in one MLflow run.

Training opens the run, the later stages reopen it. A run that cannot be opened stops a stage before its work; a record
that is lost later does not: logging is asynchronous and holds nothing up, and the results that DVC keeps are complete
without MLflow.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contract.documents import read_result
from contract.environment import PREFECT_RUN, SWEEP, is_first_process, is_tracked
from contract.events import RunOpened, emit, has_reader, report
from contract.nesting import flatten
from contract.params import Params
from contract.stage_names import LINEAGE
from tracking.connection import connect, explain_refusals, open_experiment, shorten
from tracking.lineage import read_lineage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MODEL_RUN_TAG = "ddpm.trained_in"
CONTINUES_TAG = "ddpm.continues"
SWEEP_TAG = "ddpm.sweep"
"""Names of the sweeps that a run belongs to, separated by spaces: a later sweep may reuse the run of an earlier one."""

_REQUEST_PARAMS = 100
"""Parameters that MLflow takes in one request."""

_MAX_CHARACTERS = 6000
"""Characters that MLflow keeps of a parameter; it cuts the rest off without a word."""

_SHOWN_CHARACTERS = 500
"""Characters of a longer one that stand in the run; a file of the run holds the whole."""


class Tracker:
    """A tracker that records nothing: where tracking is off, and in all processes of a stage but the first."""

    run_id = ""
    experiment_id = ""

    def record_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics at a step, beside those of other names at the same step."""

    def record_image(self, key: str, image: NDArray[np.uint8], step: int = 0) -> None:
        """Record an image, shape (height, width, 3), in the series `key`."""

    def record_tags(self, tags: Mapping[str, str]) -> None:
        """Record facts about the run that are no parameters."""

    def record_file(self, path: Path, folder: str) -> None:
        """Record a file under `folder` of the run's artifacts."""

    def close(self, status: str) -> None:
        """Send the records that still wait, and end the run: FINISHED, FAILED or KILLED."""


class MlflowTracker(Tracker):
    """A tracker that records in one MLflow run."""

    def __init__(self, client: "MlflowClient", run_id: str, experiment_id: str) -> None:
        self._client = client
        self.run_id = run_id
        self.experiment_id = experiment_id
        # MLflow's own queue of images can be waited for only through an active run, and hides its failures.
        self._images = ThreadPoolExecutor(1, thread_name_prefix="mlflow-images")

    def record_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._attempt(lambda: self._client.log_batch(self.run_id, metrics=metrics, synchronous=False))

    def record_image(self, key: str, image: NDArray[np.uint8], step: int = 0) -> None:
        self._images.submit(
            self._attempt, lambda: self._client.log_image(self.run_id, image, key=key, step=step, synchronous=True)
        )

    def record_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        entities = [RunTag(name, value) for name, value in tags.items()]
        self._attempt(lambda: self._client.log_batch(self.run_id, tags=entities))

    def record_file(self, path: Path, folder: str) -> None:
        self._attempt(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def close(self, status: str) -> None:
        import mlflow

        self._images.shutdown()
        self._attempt(mlflow.flush_async_logging)
        self._attempt(lambda: self._client.set_terminated(self.run_id, status))

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            report("warning", f"tracking: warning: MLflow did not take a record ({shorten(error)})")


@contextmanager
def open_run(params: Params, stage: str = "train", earlier_run_id: str | None = None) -> Iterator[Tracker]:
    """Open the MLflow run that a stage records in; it ends with the block, with a status to match.

    A training goes on in the run that it was interrupted in, or gets a new one; a later stage adds to the run of the
    stage before. An MLflow parameter never changes: where that run holds other parameters of this stage or of an
    earlier one, this is another experiment, and gets a run of its own, tagged with the one before or with the one that
    trained the model. A model that was not tracked stays so.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    tracker, status = open_tracker(params, stage, earlier_run_id), "KILLED"
    try:
        yield tracker
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        tracker.close(status)


def open_tracker(params: Params, stage: str, earlier_run_id: str | None) -> Tracker:
    """Return the tracker of a stage; one that records nothing, where nothing is to be recorded.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    is_untracked_model = stage != "train" and not earlier_run_id
    if not is_tracked() or is_untracked_model or not is_first_process():
        return Tracker()
    client = connect()
    experiment_id = open_experiment(client)
    sections = {name: params.section(name) for name in LINEAGE[: LINEAGE.index(stage) + 1]}
    wholes = {name: str(value) for name, value in flatten(sections).items()}
    values = {name: _abbreviate(name, value) for name, value in wholes.items()}
    with explain_refusals():
        candidates, tags = _find_candidates(client, experiment_id, stage, earlier_run_id)
        agreeing = (run for run in candidates if _agree(run.data.params, values))
        run = next(agreeing, None) or _create_run(client, experiment_id, params.profile, tags)
        _resume_run(client, run, stage, values, wholes)
    run_id = str(run.info.run_id)
    if stage == "train" or run_id != earlier_run_id:
        if has_reader():
            emit(RunOpened(run_id, experiment_id))
        else:
            report("info", f"{stage}: MLflow run {run_id} of experiment {experiment_id}")
    return MlflowTracker(client, run_id, experiment_id)


def read_run_id(path: Path) -> str:
    """Return the MLflow run noted in a stage's JSON result; empty, if the stage was not tracked."""
    return str(read_result(path)["mlflow_run_id"])


def join_sweep(client: "MlflowClient", run: "Run", sweep: str) -> None:
    """Tag a run as part of a sweep, beside those that it belongs to."""
    joined = run.data.tags.get(SWEEP_TAG, "").split()
    if sweep not in joined:
        client.set_tag(run.info.run_id, SWEEP_TAG, " ".join([*joined, sweep]))


def _find_candidates(
    client: "MlflowClient", experiment_id: str, stage: str, earlier_run_id: str | None
) -> tuple[list["Run"], dict[str, str]]:
    """Return the runs to which a stage may add, and the tags of a new one.

    For a later stage the earlier run comes first, then the run that trained the model, then later experiments on it,
    newest first.
    """
    if not earlier_run_id:
        return [], {}
    earlier = _find_run(client, earlier_run_id)
    if stage == "train":
        return earlier, {CONTINUES_TAG: earlier_run_id}
    trained_in = earlier[0].data.tags.get(MODEL_RUN_TAG, earlier_run_id) if earlier else earlier_run_id
    later = client.search_runs([experiment_id], f"tags.`{MODEL_RUN_TAG}` = '{trained_in}'")
    return [*earlier, *_find_run(client, trained_in), *later], {MODEL_RUN_TAG: trained_in}


def _find_run(client: "MlflowClient", run_id: str) -> list["Run"]:
    """Return the run; nothing where it was made in another database, or deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        # INVALID_PARAMETER_VALUE: the other database writes ids in another form. Other errors say nothing of the run.
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return []
        raise
    return [] if run.info.lifecycle_stage == "deleted" else [run]


def _create_run(client: "MlflowClient", experiment_id: str, profile: str, tags: Mapping[str, str]) -> "Run":
    all_tags = {"profile": profile, "mlflow.source.name": "dvc repro"} | read_lineage() | dict(tags)
    if "git_commit" in all_tags:
        all_tags["mlflow.source.git.commit"] = all_tags["git_commit"]  # MLflow's pages link it
    return client.create_run(experiment_id, tags=all_tags, run_name=os.environ.get(PREFECT_RUN) or None)


def _resume_run(
    client: "MlflowClient", run: "Run", stage: str, values: Mapping[str, str], wholes: Mapping[str, str]
) -> None:
    """Mark the run as running, and record the stage's parameters and what started the stage."""
    from mlflow.entities import Param

    run_id = run.info.run_id
    client.update_run(run_id, status="RUNNING")
    missing = [Param(name, value) for name, value in values.items() if name not in run.data.params]
    for param in missing:
        if param.value != wholes[param.key]:
            client.log_text(run_id, wholes[param.key], _file_of(param.key))
    for start in range(0, len(missing), _REQUEST_PARAMS):
        client.log_batch(run_id, params=missing[start : start + _REQUEST_PARAMS])
    for name, value in read_lineage().items():
        if not name.startswith("dvc_"):
            client.set_tag(run_id, f"{stage}.{name}", value)
    if sweep := os.environ.get(SWEEP):
        join_sweep(client, run, sweep)


def _agree(recorded: Mapping[str, str], values: Mapping[str, str]) -> bool:
    return all(recorded.get(name, value) == value for name, value in values.items())


def _abbreviate(name: str, value: str) -> str:
    """Return a parameter's value as the run holds it: whole, or its beginning with what tells it from any other."""
    if len(value) <= _MAX_CHARACTERS:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()
    return f"{value[:_SHOWN_CHARACTERS]} … ({len(value)} characters, sha256 {digest}, whole in {_file_of(name)})"


def _file_of(name: str) -> str:
    return f"params/{name}.txt"
