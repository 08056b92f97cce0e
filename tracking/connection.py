"""Connect to MLflow, at a server or at the project's own database file."""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from contract.addresses import describe_failure, hide_password, tracking_server
from contract.environment import TRACKING, TRACKING_URI
from contract.errors import StageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "flowers-ddpm"
"""Name of the MLflow experiment that holds all runs of the project."""

ANSWER_SECONDS = 10
"""Time in which a server that is up answers."""

_SETTINGS = {
    # MLflow greets, warns and reports home by default; the terminal belongs to the stage.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # With its own defaults, seven attempts of two minutes, a dead server holds a training up for a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class TrackingError(StageError):
    """MLflow cannot be used; the message names its address."""


def tracking_uri() -> str:
    """Return the address of MLflow's store: MLFLOW_TRACKING_URI, or mlflow.db in the project."""
    root = Path(os.environ.get("DVC_ROOT", ".")).absolute()  # DVC runs experiments in copies of the project
    return os.environ.get(TRACKING_URI) or f"sqlite:///{root / 'mlflow.db'}"


def connect() -> "MlflowClient":
    """Return a client of MLflow at `tracking_uri`, which the whole process uses from now on.

    A server is asked first, without the minutes in which MLflow's client tries again.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs what it raises
    database = _database_file()
    _require_answer()
    with _explain_silence():
        mlflow.set_tracking_uri(tracking_uri())
        # One process at a time creates the tables of a database file: two at once would fail.
        with FileLock(f"{database}.lock") if database else contextlib.nullcontext():
            return mlflow.MlflowClient()


def require_tracking() -> None:
    """Check that runs can be recorded, unless tracking is switched off.

    Raises:
        TrackingError: MLflow cannot be reached, or its experiment has been deleted.
    """
    if os.environ.get(TRACKING) != "off":
        open_experiment(connect())


def open_experiment(client: "MlflowClient") -> str:
    """Return the id of the project's MLflow experiment, which is created where it does not exist.

    Raises:
        TrackingError: the experiment has been deleted, or MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with _explain_silence():
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            database = _database_file()  # its files lie beside it; a server chooses their place itself
            folder = (database.parent / "mlartifacts").as_uri() if database else None
            with contextlib.suppress(MlflowException):  # another stage has created it meanwhile
                client.create_experiment(EXPERIMENT, artifact_location=folder)
            experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        raise TrackingError(f"MLflow at {tracking_uri()} did not create the experiment {EXPERIMENT}")
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the experiment {EXPERIMENT} has been deleted from MLflow at {tracking_uri()}: `{TRACKING_URI}="
            f"{tracking_uri()} mlflow experiments restore --experiment-id {experiment.experiment_id}` brings it back"
        )
    return str(experiment.experiment_id)


@contextmanager
def explain_refusals() -> Iterator[None]:
    """Turn MLflow's errors inside the block into errors that name its address.

    Raises:
        TrackingError: MLflow refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"MLflow at {tracking_uri()} refused: {shorten(error)}") from error


@contextmanager
def _explain_silence() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # raised by MLflow, its database or the disk
        raise TrackingError(
            f"MLflow at {tracking_uri()} does not answer: {shorten(error)}. Start its server, unset {TRACKING_URI} to "
            f"use the project's mlflow.db, or set {TRACKING}=off to do without"
        ) from error


def _require_answer() -> None:
    """Check that the server at MLFLOW_TRACKING_URI, if it names one, answers as MLflow does, and to this user."""
    if not (address := tracking_server()):
        return
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(address),  # type: ignore[no-untyped-call]
            "/api/2.0/mlflow/experiments/search?max_results=1",
            "GET",
            max_retries=0,
            timeout=ANSWER_SECONDS,
            raise_on_status=False,
        )
        answer.raise_for_status()
        answer.json()
    except Exception as error:  # whatever the client, the network and the server have to say
        raise TrackingError(
            f"MLflow at {hide_password(address)} {describe_failure(error, 'MLflow')}. The address comes from the "
            f"environment variable {TRACKING_URI} and looks like http://127.0.0.1:5000; a login stands in "
            f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Start its server (`make up`), `unset "
            f"{TRACKING_URI}` to use the project's mlflow.db, or set {TRACKING}=off to do without"
        ) from None


def shorten(error: Exception) -> str:
    """Describe an error of MLflow in one line, without the SQL that a database adds to its own words."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if not line.startswith(("[SQL", "[parameters", "(Background", "(raised as")))


def _database_file() -> Path | None:
    uri = tracking_uri()
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
