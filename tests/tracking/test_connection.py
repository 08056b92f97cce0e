"""The way to MLflow: the project's database or a server, and what is said where it cannot be used."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from contract.errors import FlowersError
from ddpm.checkpoint import CheckpointError
from tracking.connection import EXPERIMENT, TrackingError, connect, open_experiment, tracking_uri
from tracking.registry import Registry, open_model
from tracking.search import search_runs

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # in MLflow's own tables


def test_the_database_lies_in_the_project(folder, monkeypatch):
    assert tracking_uri() == f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", "/project")  # also where DVC runs an experiment in a copy
    assert tracking_uri() == "sqlite:////project/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri() == "http://server:5000"


@pytest.mark.parametrize("uri", ["sqlite+pysqlite:///x.db", "mlruns", "file:./mlruns"])
def test_a_relative_place_is_one_of_the_project_also_where_dvc_works_in_a_copy(folder, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("DVC_ROOT", str(folder))
    (folder / "copy").mkdir()
    monkeypatch.chdir("copy")
    open_experiment(connect())
    assert [*Path().iterdir()] == [] and any((folder / name).exists() for name in ("x.db", "mlruns"))


READERS = {
    "compare": search_runs,
    "the champion": lambda: Registry("flowers").champion(),
    "promote": lambda: Registry("flowers").promote("1"),
    "load": lambda: open_model("models:/flowers@champion").__enter__(),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("uri", "missing"), [("", "mlflow.db"), ("sqlite:///a/x.db", "a/x.db"), ("mlruns", "mlruns")])
def test_reading_creates_nothing_and_names_the_store(folder, monkeypatch, reader, uri, missing):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises((FlowersError, CheckpointError), match=f"there is no MLflow store at .*{folder}/{missing}: "):
        READERS[reader]()
    assert [*folder.iterdir()] == []


def test_reading_makes_no_experiment(client):
    assert search_runs().empty and client.get_experiment_by_name(EXPERIMENT) is None


def test_two_first_users_of_a_database_create_it_once(folder, project):
    program = "import mlflow, sys; from tracking.connection import *; input(); open_experiment(connect())"
    users = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONPATH": str(project)},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for user in users:
        user.stdin.write("go\n")
        user.stdin.flush()
    assert [(user.communicate(timeout=120)[1], user.returncode) for user in users] == [("", 0)] * 2


def test_files_lie_beside_the_database(client, monkeypatch, folder):
    (folder / "mlflow.db").rename("other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    connected = connect()
    experiment = connected.get_experiment(open_experiment(connected))
    assert (experiment.name, experiment.artifact_location) == (EXPERIMENT, (folder / "mlartifacts").as_uri())


def test_a_deleted_experiment_is_named_with_the_way_to_restore_it(client):
    experiment_id = open_experiment(connect())
    client.delete_experiment(experiment_id)
    with pytest.raises(TrackingError, match=rf"deleted .*mlflow experiments restore --experiment-id {experiment_id}"):
        open_experiment(connect())
    client.restore_experiment(experiment_id)
    assert open_experiment(connect()) == experiment_id


def test_a_server_that_does_not_answer_is_a_clear_error(folder, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=rf"MLflow at {address} does not answer: nothing .*DDPM_TRACKING=off"):
        open_experiment(connect())


@pytest.mark.parametrize("uri", ["sqlite:///{folder}/garbage.db", "sqlite:////proc/none/mlflow.db", "ftp://host/path"])
def test_a_place_that_cannot_be_used_is_a_clear_error(client, folder, monkeypatch, uri):
    uri = uri.format(folder=folder)
    Path("garbage.db").write_text("this is no database, but a page about tulips\n" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=f"MLflow at {uri} does not answer: ") as caught:
        open_experiment(connect())
    assert len(str(caught.value).splitlines()) == 1 and "sqlalche.me" not in str(caught.value)


def test_a_dead_server_is_not_asked_for_minutes(client, monkeypatch):
    # MLflow's own defaults, seven attempts of two minutes, would hold up a training for a quarter of an hour.
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    connect()
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 3
    assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 20
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
