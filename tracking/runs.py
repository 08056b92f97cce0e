"""One MLflow run an experiment.

Training opens the run, the later stages reopen it. A run that cannot be opened stops a stage before its work; a record
that is lost later does not: logging is asynchronous, holds nothing up, and what DVC keeps is whole without MLflow.
"""

import contextlib
import fcntl
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from contract.environment import SWEEP
from contract.errors import StageError
from contract.events import RunOpened, are_read, emit
from contract.params import Params, flat
from ddpm.distributed import is_first
from tracking.lineage import flow_run_name, lineage_tags

EXPERIMENT = "flowers-ddpm"
TRACKING_VARIABLE = "DDPM_TRACKING"
"""Set to "off", nothing is logged."""
MODEL_RUN_TAG = "ddpm.trained_in"
CONTINUES_TAG = "ddpm.continues"
SWEEP_TAG = "ddpm.sweep"
"""The sweeps that a run belongs to, between spaces: what an earlier one has trained is not trained again."""
STAGES = ("download", "preprocess", "train", "sample", "reference", "evaluate", "register")
"""Each with those that its results rest on before it. Reference runs before train, to fail before it, and shapes no
model and no sample."""

_PAGE_RUNS = 1000
"""What one request may ask for."""

Scalars: TypeAlias = Mapping[str, float]


class TrackingError(StageError):
    """MLflow cannot be used; the message says how it was addressed."""


class Tracker(Protocol):
    """Where a stage's results go."""

    run_id: str
    experiment_id: str

    def record_metrics(self, values: Scalars, step: int = 0) -> None:
        """Figures at a step; existing figures of the same name and step are joined by these."""

    def record_image(self, key: str, image: NDArray[np.uint8], step: int = 0) -> None:
        """An image, shape (height, width, 3), in the series `key`."""

    def record_tags(self, tags: Mapping[str, str]) -> None:
        """Facts about the run that are no parameters."""

    def record_file(self, path: Path, folder: str) -> None:
        """A file, under `folder` of the run's artifacts."""

    def close(self, status: str) -> None:
        """Send what still waits, and end the run: FINISHED, FAILED or KILLED."""


class NoTracker:
    """A tracker that forgets everything."""

    run_id = ""
    experiment_id = ""

    def record_metrics(self, values: Scalars, step: int = 0) -> None: ...

    def record_image(self, key: str, image: NDArray[np.uint8], step: int = 0) -> None: ...

    def record_tags(self, tags: Mapping[str, str]) -> None: ...

    def record_file(self, path: Path, folder: str) -> None: ...

    def close(self, status: str) -> None: ...


class MlflowTracker:
    """A tracker on one MLflow run."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self.run_id = run_id
        self.experiment_id: str = client.get_run(run_id).info.experiment_id
        # MLflow's own queue of images can be waited for only through an active run, and its failures go by unseen.
        self._images = ThreadPoolExecutor(1, thread_name_prefix="mlflow-images")

    def record_metrics(self, values: Scalars, step: int = 0) -> None:
        import time

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

    def _attempt(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            print(f"tracking: warning: MLflow did not take a record ({error})", file=sys.stderr, flush=True)


@contextmanager
def opened_run(params: Params, run_id: str | None = None) -> Iterator[Tracker]:
    """The MLflow run of a training: a new one, or `run_id` continued; ended with the block, by how that ends.

    The first of several processes speaks to MLflow, for all.

    An MLflow parameter never changes: where the run to continue was made with others, as with more steps, the training
    goes on in a new run, tagged with the one before.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    if os.environ.get(TRACKING_VARIABLE) == "off" or not is_first():
        yield NoTracker()
        return
    client = _client()
    wanted = _wanted_params(params, "train")
    with explained():
        run = _run(client, run_id) if run_id else None
        if run_id is None or run is None or not _agree(run.data.params, wanted):
            run_id = _created_run(client, params, {CONTINUES_TAG: run_id} if run_id else {})
        _resume(client, run_id, "train", wanted)
        tracker = MlflowTracker(client, run_id)
    _announce(tracker, "train")
    with _closing(tracker):
        yield tracker


@contextmanager
def reopened_run(params: Params, stage: str, earlier_run_id: str) -> Iterator[Tracker]:
    """The run of the stage before, for `stage` to add to.

    Where that run already holds other parameters of this stage or of one before it, this is another experiment on the
    same model, and gets a run of its own, tagged with the run of the training.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    if os.environ.get(TRACKING_VARIABLE) == "off" or not earlier_run_id or not is_first():
        yield NoTracker()
        return
    client = _client()
    wanted = _wanted_params(params, stage)
    with explained():
        earlier = _run(client, earlier_run_id)
        trained_in = earlier.data.tags.get(MODEL_RUN_TAG, earlier_run_id) if earlier else earlier_run_id
        candidates = [earlier, *_runs_on_model(client, trained_in)]
        run_id = next((run.info.run_id for run in candidates if run and _agree(run.data.params, wanted)), None)
        if run_id is None:
            run_id = _created_run(client, params, {MODEL_RUN_TAG: trained_in})
        _resume(client, run_id, stage, wanted)
        tracker = MlflowTracker(client, run_id)
    if run_id != earlier_run_id:
        _announce(tracker, stage)
    with _closing(tracker):
        yield tracker


def recorded_runs(filter_text: str = "", max_runs: int | None = None) -> list[Any]:
    """The runs of the project as MLflow gives them, newest first.

    Args:
        filter_text: in MLflow's language, such as "tags.profile = 'quickstart'".
        max_runs: the newest alone.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    client, found, token = _client(), list[Any](), None
    with explained():
        experiment_id = client.get_experiment_by_name(EXPERIMENT).experiment_id
        while max_runs is None or len(found) < max_runs:
            wanted = _PAGE_RUNS if max_runs is None else min(_PAGE_RUNS, max_runs - len(found))
            page = client.search_runs([experiment_id], filter_text, max_results=wanted, page_token=token)
            found, token = [*found, *page], page.token
            if not token:
                break
    return found


def join_sweep(run_ids: Iterable[str], sweep: str) -> None:
    """Tag runs as parts of a sweep: those, too, that were made before it, and serve it as they are.

    Raises:
        TrackingError: MLflow cannot be reached, or has no such run.
    """
    client = _client()
    with explained():
        for run_id in run_ids:
            _join_sweep(client, client.get_run(run_id), sweep)


def tracking_uri() -> str:
    """Where MLflow keeps its runs: MLFLOW_TRACKING_URI, or mlflow.db in the project, also from DVC's copies of it."""
    root = Path(os.environ.get("DVC_ROOT", ".")).absolute()
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def _announce(tracker: Tracker, stage: str) -> None:
    """Report which run records the stage: to the run page, which links to it, or else to the terminal."""
    emit(RunOpened(tracker.run_id, tracker.experiment_id))
    if not are_read():
        print(f"{stage}: MLflow run {tracker.run_id} of experiment {tracker.experiment_id}", flush=True)


@contextmanager
def _closing(tracker: Tracker) -> Iterator[Tracker]:
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        tracker.close(status)


def connect() -> Any:
    """A client of MLflow at `tracking_uri`, which this process speaks to from now on."""
    # MLflow greets, warns and reports home by default; the terminal belongs to the stage.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # which stages say themselves, once
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)
    uri = tracking_uri()
    try:
        mlflow.set_tracking_uri(uri)
        with _one_at_a_time(uri):
            return mlflow.MlflowClient()
    except Exception as error:  # MLflow's own, or of its database or the disk
        raise TrackingError(_unanswered(error)) from error


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """The first user of a database file has MLflow make its tables, at which two at once would fail."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    with Path(f"{uri.removeprefix('sqlite:///')}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _client() -> Any:
    """A client of MLflow, where the experiment is there to be written to."""
    import mlflow
    from mlflow.exceptions import MlflowException

    client = connect()
    try:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            # Another stage may have made it meanwhile.
            with contextlib.suppress(MlflowException):
                client.create_experiment(EXPERIMENT, artifact_location=_artifact_location(tracking_uri()))
        elif experiment.lifecycle_stage == "deleted":
            raise TrackingError(_deleted(experiment.experiment_id))
        mlflow.set_experiment(EXPERIMENT)
    except TrackingError:
        raise
    except Exception as error:  # as above
        raise TrackingError(_unanswered(error)) from error
    return client


def _unanswered(error: Exception) -> str:
    return (
        f"MLflow at {tracking_uri()} does not answer: {error}. Start its server, unset MLFLOW_TRACKING_URI to use the "
        f"project's mlflow.db, or set {TRACKING_VARIABLE}=off to do without"
    )


def _deleted(experiment_id: str) -> str:
    return (
        f"the experiment {EXPERIMENT} has been deleted from MLflow at {tracking_uri()}: `MLFLOW_TRACKING_URI="
        f"{tracking_uri()} mlflow experiments restore --experiment-id {experiment_id}` brings it back"
    )


def _artifact_location(uri: str) -> str | None:
    """Beside the project's database; a server chooses its own place."""
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
    return None


def _created_run(client: Any, params: Params, tags: Mapping[str, str]) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    all_tags = {"profile": params.profile, "mlflow.source.name": "dvc repro"}
    all_tags |= lineage_tags() | dict(tags)
    if "git_commit" in all_tags:
        all_tags["mlflow.source.git.commit"] = all_tags["git_commit"]
    run = client.create_run(experiment.experiment_id, tags=all_tags, run_name=flow_run_name())
    return str(run.info.run_id)


def _run(client: Any, run_id: str) -> Any | None:
    """The run; None where it was made in another database, or deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        # The second, where the other database names its runs in another way. All else says nothing of the run.
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise
    return None if run.info.lifecycle_stage == "deleted" else run


def _runs_on_model(client: Any, trained_in: str) -> list[Any]:
    """The run that trained the model, if it is here, and the later experiments on it, newest first."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    later = client.search_runs([experiment.experiment_id], f"tags.`{MODEL_RUN_TAG}` = '{trained_in}'")
    return [_run(client, trained_in), *later]


def _resume(client: Any, run_id: str, stage: str, wanted: Mapping[str, str]) -> None:
    """Mark the run as going on, with the stage's parameters, and whence this stage ran."""
    client.update_run(run_id, status="RUNNING")
    _log_params(client, run_id, wanted)
    for name, value in lineage_tags().items():
        if name in {"git_commit", "git_has_local_changes", "prefect_flow_run", "prefect_flow_run_id"}:
            client.set_tag(run_id, f"{stage}.{name}", value)
    if sweep := os.environ.get(SWEEP):
        _join_sweep(client, client.get_run(run_id), sweep)


def _join_sweep(client: Any, run: Any, sweep: str) -> None:
    joined = run.data.tags.get(SWEEP_TAG, "").split()
    if sweep not in joined:
        client.set_tag(run.info.run_id, SWEEP_TAG, " ".join([*joined, sweep]))


@contextmanager
def explained() -> Iterator[None]:
    """MLflow's refusals inside the block, as errors that say how it was addressed.

    Raises:
        TrackingError: MLflow refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"MLflow at {tracking_uri()} refused: {error}") from error


def _wanted_params(params: Params, last_stage: str) -> dict[str, str]:
    """The parameters of all stages up to this one, as MLflow keeps them."""
    sections = {stage: params.section(stage) for stage in STAGES[: STAGES.index(last_stage) + 1]}
    return {name: str(value) for name, value in flat(sections).items()}


def _agree(recorded: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(recorded.get(name, value) == value for name, value in wanted.items())


def _log_params(client: Any, run_id: str, values: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    recorded = client.get_run(run_id).data.params
    missing = [Param(name, value) for name, value in values.items() if name not in recorded]
    for start in range(0, len(missing), 100):  # what one request may hold
        client.log_batch(run_id, params=missing[start : start + 100])
