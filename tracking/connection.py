"""Connect to MLflow, at a server or at the project's own database file."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from filelock import FileLock

from contract.addresses import describe_failure, make_absolute, tracking_server
from contract.environment import REGISTRY_URI, TRACKING, TRACKING_URI, find_project, is_tracked
from contract.errors import StageError
from tracking.relocation import ARTIFACTS, EXPERIMENT, find_database, follow_files, require_own_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

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
    """Return the address of MLflow's store, in absolute form: MLFLOW_TRACKING_URI, or mlflow.db in the project."""
    return make_absolute(os.environ.get(TRACKING_URI) or "sqlite:///mlflow.db", find_project())


def connect() -> "MlflowClient":
    """Return a client of MLflow at `tracking_uri`, which the whole process uses from now on.

    A server is asked first, without the minutes in which MLflow's client tries again. A database that does not exist is
    created, with its tables.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if registry := os.environ.get(REGISTRY_URI):
        os.environ[REGISTRY_URI] = make_absolute(registry, find_project())
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs what it raises
    database = find_database(tracking_uri())
    _require_answer()
    with _explain_silence():
        mlflow.set_tracking_uri(tracking_uri())
        # One process at a time creates the tables of a database file: two at once would fail.
        with FileLock(f"{database}.lock") if database else contextlib.nullcontext():
            if database:
                follow_files(database)
            return mlflow.MlflowClient()


def require_tracking() -> None:
    """Check that runs can be recorded, unless tracking is switched off.

    Raises:
        TrackingError: MLflow cannot be reached, or its experiment has been deleted.
    """
    if is_tracked():
        open_experiment(connect())


def connect_to_read() -> "MlflowClient":
    """Return a client as `connect` does, where there is something to read: nothing is created.

    Raises:
        TrackingError: there is no such database or folder, or MLflow cannot be reached.
    """
    place = find_database(tracking_uri()) or _store_folder()
    if place and not place.exists():
        raise TrackingError(
            f"there is no MLflow store at {tracking_uri()}: `make run` makes it in the project; change to its folder, "
            f"or name another place by {TRACKING_URI}"
        )
    return connect()


def find_experiment(client: "MlflowClient") -> str | None:
    """Return the id of the project's MLflow experiment; None where there is none.

    Raises:
        TrackingError: the experiment has been deleted, or MLflow does not answer.
    """
    with _explain_silence():
        experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the experiment {EXPERIMENT} has been deleted from MLflow at {tracking_uri()}: `{TRACKING_URI}="
            f"{tracking_uri()} mlflow experiments restore --experiment-id {experiment.experiment_id}` brings it back"
        )
    return str(experiment.experiment_id)


def open_experiment(client: "MlflowClient") -> str:
    """Return the id of the project's MLflow experiment, which is created where it does not exist.

    Raises:
        TrackingError: the experiment has been deleted, or MLflow does not answer.
        StageError: its files lie in another project.
    """
    from mlflow.exceptions import MlflowException

    if database := find_database(tracking_uri()):
        require_own_files(database)
    if (found := find_experiment(client)) is None:
        with _explain_silence(), contextlib.suppress(MlflowException):  # another stage has created it meanwhile
            client.create_experiment(EXPERIMENT, artifact_location=_files_place())
        found = find_experiment(client)
    if found is None:
        raise TrackingError(f"MLflow at {tracking_uri()} did not create the experiment {EXPERIMENT}")
    return found


@contextmanager
def explain_refusals() -> Iterator[None]:
    """Turn MLflow's errors inside the block into errors that name its address.

    Raises:
        TrackingError: MLflow refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:  # the latter from the disk that its files lie on
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
            f"MLflow at {address} {describe_failure(error, 'MLflow')}. The address comes from the "
            f"environment variable {TRACKING_URI} and looks like http://127.0.0.1:5000; a login stands in "
            f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Start its server (`make up`), `unset "
            f"{TRACKING_URI}` to use the project's mlflow.db, or set {TRACKING}=off to do without"
        ) from None


def shorten(error: Exception) -> str:
    """Describe an error of MLflow in one line, without the SQL that a database adds to its own words."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if not line.startswith(("[SQL", "[parameters", "(Background", "(raised as")))


def _store_folder() -> Path | None:
    """Return the folder of a store without a database."""
    found = re.fullmatch(r"(file:(?://)?)?(/[^?]*)", tracking_uri())
    return Path(unquote(found[2]) if found[1] else found[2]) if found else None


def _files_place() -> str | None:
    """Return the place for the files of a new experiment; None where the store or its server chooses it itself."""
    if database := find_database(tracking_uri()):  # beside it
        return (database.parent / ARTIFACTS).as_uri()
    if re.match(r"(postgresql|mysql|mssql)\b", tracking_uri()):  # without a server MLflow would take the current folder
        return (find_project() / ARTIFACTS).as_uri()
    return None
