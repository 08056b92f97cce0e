"""One MLflow run an experiment, in a real database of this test's own."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from contract.params import flat
from stages.runtime.interruption import Interrupted
from tracking import runs as module
from tracking.runs import (
    EXPERIMENT,
    SWEEP_TAG,
    NoTracker,
    TrackingError,
    opened_run,
    reopened_run,
    tracking_uri,
)

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # in MLflow's own tables
PICTURE = np.full((8, 8, 3), 200, np.uint8)


@pytest.fixture
def runs(client):
    """The runs of the experiment, oldest first."""

    def read():
        experiment = client.get_experiment_by_name(EXPERIMENT)
        return sorted(client.search_runs([experiment.experiment_id]), key=lambda run: run.info.start_time)

    return read


@pytest.fixture
def trained(client, make_params):
    """The id of a finished training's run."""
    with opened_run(make_params()) as tracker:
        pass
    return tracker.run_id


def interrupt(opened, error, metrics=None):
    """Enters a run, records, and leaves it by an error."""
    trackers = []

    def stage():
        with opened as tracker:
            trackers.append(tracker)
            if metrics:
                tracker.record_metrics(metrics, 1)
            raise error

    with pytest.raises(type(error)):
        stage()
    return trackers[0]


def pictures(key):
    """The steps of the images logged under a key, full size."""
    names = [path.name for path in Path("mlartifacts").glob("*/artifacts/images/*.png")]
    return sorted(int(name.split("+")[2]) for name in names if name.startswith(f"{key}+step+"))


def test_a_training_leaves_parameters_metrics_images_and_tags(client, runs, make_params):
    params = make_params()
    with opened_run(params) as tracker:
        assert client.get_run(tracker.run_id).info.status == "RUNNING"
        for step in (1, 2):
            tracker.record_metrics({"loss": 1.0 / step, "rate": 3}, step)
            tracker.record_image("samples", PICTURE, step)
        tracker.record_tags({"mood": "cheerful"})
        Path("losses.csv").write_text("step,loss\n")
        tracker.record_file(Path("losses.csv"), "training")
    (run,) = runs()
    assert (run.info.run_id, run.info.experiment_id) == (tracker.run_id, tracker.experiment_id)
    assert run.info.status == "FINISHED" and run.info.end_time is not None
    expected = flat({name: params.section(name) for name in ("download", "preprocess", "train")})
    assert run.data.params == {name: str(value) for name, value in expected.items()}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]
    assert run.data.metrics == {"loss": 0.5, "rate": 3.0}
    assert pictures("samples") == [1, 2]
    assert run.data.tags["mood"] == "cheerful" and run.data.tags["profile"] == params.profile
    assert [file.path for file in client.list_artifacts(run.info.run_id, "training")] == ["training/losses.csv"]


def test_two_first_users_of_a_database_make_it_once(folder, project):
    program = "import mlflow, sys; from tracking.runs import _client; sys.stdin.readline(); _client()"
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


def test_a_run_names_code_and_data(client, runs, make_params, monkeypatch):
    tags = {"git_commit": "a" * 40, "dvc_data": "b.dir", "prefect_flow_run": "wise-owl"}
    monkeypatch.setattr(module, "lineage_tags", lambda: tags)
    with opened_run(make_params()):
        pass
    (run,) = runs()
    assert tags.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.source.git.commit"] == "a" * 40  # which the pages of MLflow link


def test_a_run_bears_the_name_of_its_flow_run(client, make_params, monkeypatch):
    monkeypatch.setenv("DDPM_PREFECT_FLOW_RUN", "wise-owl")
    with opened_run(make_params()) as tracker:
        pass
    assert client.get_run(tracker.run_id).info.run_name == "wise-owl"
    monkeypatch.delenv("DDPM_PREFECT_FLOW_RUN")
    with opened_run(make_params()) as tracker:
        pass
    assert client.get_run(tracker.run_id).info.run_name  # MLflow's own choice


def test_a_run_is_told_as_soon_as_it_is_open(client, make_params, capsys):
    with opened_run(make_params()) as tracker:
        told = f"MLflow run {tracker.run_id} of experiment {tracker.experiment_id}\n"
        assert capsys.readouterr().out == f"train: {told}"
    with reopened_run(make_params(), "sample", tracker.run_id):
        assert capsys.readouterr().out == ""  # it has been told
    with reopened_run(make_params({"sample.seed": 7}), "sample", tracker.run_id) as another:
        assert another.run_id != tracker.run_id
        assert capsys.readouterr().out.startswith(f"sample: MLflow run {another.run_id} of experiment ")


def test_a_run_of_a_sweep_bears_its_name_and_keeps_those_of_earlier_ones(client, make_params, monkeypatch):
    monkeypatch.setenv("DDPM_SWEEP", "owls")
    with opened_run(make_params()) as tracker:
        pass
    assert client.get_run(tracker.run_id).data.tags[SWEEP_TAG] == "owls"
    monkeypatch.setenv("DDPM_SWEEP", "rooks")
    for _ in range(2):
        with reopened_run(make_params(), "sample", tracker.run_id):
            pass
    assert client.get_run(tracker.run_id).data.tags[SWEEP_TAG] == "owls rooks"
    monkeypatch.delenv("DDPM_SWEEP")
    with opened_run(make_params()) as alone:
        pass
    assert SWEEP_TAG not in client.get_run(alone.run_id).data.tags


def test_figures_that_wait_are_sent_before_the_run_ends(client, make_params, monkeypatch):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # it warns of itself, so not at the top

    log_batch = SqlAlchemyStore.log_batch

    def slow(self, *arguments, **options):
        time.sleep(0.1)
        log_batch(self, *arguments, **options)

    monkeypatch.setattr(SqlAlchemyStore, "log_batch", slow)
    with opened_run(make_params()) as tracker:
        for step in range(50):
            tracker.record_metrics({"loss": float(step)}, step)
        assert len(client.get_metric_history(tracker.run_id, "loss")) < 50  # training is not held up
    assert len(client.get_metric_history(tracker.run_id, "loss")) == 50


def test_images_that_wait_are_sent_before_the_run_ends(client, make_params, monkeypatch):
    log_artifact = LocalArtifactRepository.log_artifact

    def slow(self, *arguments, **options):
        time.sleep(0.1)
        log_artifact(self, *arguments, **options)

    monkeypatch.setattr(LocalArtifactRepository, "log_artifact", slow)
    with opened_run(make_params()) as tracker:
        for step in range(3):
            tracker.record_image("samples", PICTURE, step)
        assert pictures("samples") != [0, 1, 2]  # training is not held up
    assert pictures("samples") == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ZeroDivisionError(), "FAILED"),
        (Interrupted("SIGTERM"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(1), "KILLED"),
    ],
)
def test_a_run_ends_as_its_stage_does(client, runs, make_params, error, status):
    tracker = interrupt(opened_run(make_params()), error)
    (run,) = runs()
    assert run.info.run_id == tracker.run_id and run.info.status == status


def test_a_resumed_training_goes_on_in_its_run(client, runs, make_params):
    first = interrupt(opened_run(make_params()), Interrupted("SIGTERM"), {"loss": 1.0})
    with opened_run(make_params(), first.run_id) as second:
        assert client.get_run(first.run_id).info.status == "RUNNING"
        second.record_metrics({"loss": 0.5}, 2)
    (run,) = runs()
    assert run.info.run_id == second.run_id and run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]


def test_a_training_carried_further_gets_a_run_with_its_own_parameters(client, make_params, trained):
    with opened_run(make_params({"train.num_steps": 50}), trained) as further:
        pass
    run = client.get_run(further.run_id)
    assert further.run_id != trained
    assert run.data.params["train.num_steps"] == "50"
    assert run.data.tags["ddpm.continues"] == trained


@pytest.mark.parametrize("how", ["of another database", "named otherwise there", "deleted"])
def test_a_training_whose_run_is_gone_gets_a_new_one(client, make_params, trained, how):
    gone = {"of another database": "0" * 32, "named otherwise there": "train/7", "deleted": trained}[how]
    if how == "deleted":
        client.delete_run(trained)
    with opened_run(make_params(), gone) as tracker:
        pass
    assert tracker.run_id not in {trained, gone}
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_deleted_experiment_is_said_to_be_deleted_and_how_to_restore_it(client, make_params, trained, folder):
    experiment_id = client.get_experiment_by_name(EXPERIMENT).experiment_id
    client.delete_experiment(experiment_id)
    with pytest.raises(TrackingError) as caught:
        opened_run(make_params()).__enter__()
    address = f"sqlite:///{folder}/mlflow.db"
    assert str(caught.value) == (
        f"the experiment {EXPERIMENT} has been deleted from MLflow at {address}: `MLFLOW_TRACKING_URI={address} "
        f"mlflow experiments restore --experiment-id {experiment_id}` brings it back"
    )
    client.restore_experiment(experiment_id)
    with opened_run(make_params(), trained) as tracker:
        assert tracker.run_id == trained


@pytest.mark.parametrize(
    "enter",
    [
        opened_run,
        lambda params, run_id: reopened_run(params, "sample", run_id),
    ],
)
def test_a_server_that_hiccups_is_an_error_and_opens_no_second_run(client, runs, make_params, trained, enter):
    def get_run(_self, _run_id):
        raise MlflowException("the database is locked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.get_run", get_run)
        with pytest.raises(TrackingError, match="refused: the database is locked"):
            enter(make_params(), trained).__enter__()
    assert [run.info.run_id for run in runs()] == [trained]


def test_later_stages_add_to_the_run_of_the_training(client, runs, make_params, trained):
    params = make_params()
    for stage in ("sample", "evaluate", "register"):
        with reopened_run(params, stage, trained) as tracker:
            assert client.get_run(trained).info.status == "RUNNING"
            tracker.record_tags({f"of.{stage}": "yes"})
        assert tracker.run_id == trained
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert {name for name in run.data.tags if name.startswith("of.")} == {"of.sample", "of.evaluate", "of.register"}
    sections = ("download", "preprocess", "reference", "train", "sample", "evaluate", "register")
    assert set(run.data.params) == set(flat({name: params.section(name) for name in sections}))


def test_another_experiment_on_the_same_model_gets_a_run_of_its_own(runs, make_params, trained):
    first, second = make_params(), make_params({"sample.seed": 7})
    for params in (first, second):
        for stage in ("sample", "evaluate"):
            with reopened_run(params, stage, trained) as tracker:
                tracker.record_tags({"seed": str(params.sample.seed)})
    one, other = runs()
    assert one.info.run_id == trained and other.info.run_id == tracker.run_id
    assert other.data.tags["ddpm.trained_in"] == trained and "ddpm.trained_in" not in one.data.tags
    assert one.data.tags["seed"] == "0" and other.data.tags["seed"] == "7"
    # It can be compared by what it was trained with, too.
    assert one.data.params | {"sample.seed": "7"} == other.data.params

    # Going back, and forth again, finds the run of each.
    for params, run in ((first, one), (second, other)):
        with reopened_run(params, "sample", trained) as tracker:
            pass
        assert tracker.run_id == run.info.run_id
    assert len(runs()) == 2


def test_parameters_of_stages_still_to_come_are_no_conflict(runs, make_params, trained):
    with reopened_run(make_params(), "evaluate", trained):
        pass
    with reopened_run(make_params({"evaluate.seed": 7}), "sample", trained) as tracker:
        pass
    assert tracker.run_id == trained and len(runs()) == 1


def test_a_model_whose_run_is_gone_gets_a_run_that_names_it(runs, make_params, client):
    for _ in range(2):
        with reopened_run(make_params(), "sample", "0" * 32) as tracker:
            pass
    (run,) = runs()
    assert run.info.run_id == tracker.run_id and run.data.tags["ddpm.trained_in"] == "0" * 32
    assert run.data.params["train.num_steps"] == "6"


@pytest.mark.parametrize(
    "enter",
    [
        opened_run,
        lambda params: reopened_run(params, "sample", "0" * 32),
    ],
)
def test_switched_off_nothing_is_tracked(folder, make_params, enter):
    before = dict(os.environ)
    with enter(make_params()) as tracker:
        tracker.record_metrics({"loss": 1.0}, 1)
        tracker.record_image("samples", PICTURE)
        tracker.record_tags({"mood": "cheerful"})
        tracker.record_file(Path("missing"), "training")
    assert isinstance(tracker, NoTracker) and tracker.run_id == tracker.experiment_id == ""
    assert list(folder.iterdir()) == [] and dict(os.environ) == before


def test_a_model_that_was_not_tracked_stays_untracked(client, make_params):
    with reopened_run(make_params(), "sample", "") as tracker:
        pass
    assert isinstance(tracker, NoTracker) and client.get_experiment_by_name(EXPERIMENT) is None


def test_failing_records_are_told_and_stop_nothing(client, make_params, capsys):
    class Broken:
        def __getattr__(self, name):
            raise MlflowException("the server is gone")

    with opened_run(make_params()) as tracker:
        tracker._client = Broken()
        tracker.record_metrics({"loss": 1.0}, 1)
        tracker.record_image("samples", PICTURE)
        tracker.record_tags({"mood": "cheerful"})
        tracker.record_file(Path("missing"), "training")
    said = capsys.readouterr().err.splitlines()
    # The four records, and the end of the run.
    assert said == ["tracking: warning: MLflow did not take a record (the server is gone)"] * 5


def test_a_server_that_does_not_answer_is_a_quick_and_clear_error(client, make_params, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    started = time.monotonic()
    with pytest.raises(TrackingError, match=rf"MLflow at {address} does not answer: .*refused.*DDPM_TRACKING=off"):
        opened_run(make_params()).__enter__()
    assert time.monotonic() - started < 5.0


def test_a_dead_server_is_not_asked_for_minutes(client, make_params):
    # MLflow's own defaults, seven attempts of two minutes, would hold up a training for a quarter of an hour.
    with opened_run(make_params()):
        pass
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 3
    assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 20
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize("uri", ["sqlite:///garbage.db", "sqlite:////proc/none/mlflow.db", "ftp://host/path"])
def test_a_place_that_cannot_be_used_is_a_clear_error(client, make_params, monkeypatch, uri):
    Path("garbage.db").write_text("this is no database, but a page about tulips\n" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=f"MLflow at {uri} does not answer: "):
        opened_run(make_params()).__enter__()


def test_a_database_may_be_named_by_a_relative_address(client, make_params, monkeypatch, folder):
    (folder / "mlflow.db").rename("other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    with opened_run(make_params()) as tracker:
        tracker.record_image("samples", PICTURE, 3)
    assert pictures("samples") == [3]


def test_the_database_lies_in_the_project(folder, monkeypatch):
    assert tracking_uri() == f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("DVC_ROOT", "/project")  # also where DVC runs an experiment in a copy
    assert tracking_uri() == "sqlite:////project/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri() == "http://server:5000"
