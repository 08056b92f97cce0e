"""One MLflow run per experiment, in a real database of this test's own."""

import ast
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from contract.events import RunOpened, parse_event
from contract.nesting import flatten
from stages.runtime.interruption import Interrupted
from tests.small_experiment import CONDITIONAL
from tracking.connection import EXPERIMENT, TrackingError
from tracking.runs import SWEEP_TAG, open_run

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
def record(client, make_params):
    """Opens the run of a stage, and ends it; gives MLflow's run."""

    def stage(name="train", earlier=None, changes=None, tags=None):
        params = make_params(changes)
        with open_run(params, name, earlier) as tracker:
            assert client.get_run(tracker.run_id).info.status == "RUNNING"
            tracker.record_tags(tags or {})
        return client.get_run(tracker.run_id)

    return stage


def id_of(run):
    return run.info.run_id


def record_each_kind(tracker):
    tracker.record_metrics({"loss": 1.0}, 1)
    tracker.record_image("samples", PICTURE)
    tracker.record_tags({"mood": "cheerful"})
    tracker.record_file(Path("missing"), "training")


def pictures(key):
    """The steps of the images logged under a key, full size."""
    names = [path.name for path in Path("mlartifacts").glob("*/artifacts/images/*.png")]
    return sorted(int(name.split("+")[2]) for name in names if name.startswith(f"{key}+step+"))


def test_a_training_leaves_parameters_metrics_images_and_tags(client, runs, make_params):
    params = make_params()
    with open_run(params) as tracker:
        for step in (1, 2):
            tracker.record_metrics({"loss": 1.0 / step, "rate": 3}, step)
            tracker.record_image("samples", PICTURE, step)
        tracker.record_tags({"mood": "cheerful"})
        Path("losses.csv").write_text("step,loss\n")
        tracker.record_file(Path("losses.csv"), "training")
    (run,) = runs()
    assert (id_of(run), run.info.experiment_id) == (tracker.run_id, tracker.experiment_id)
    assert run.info.status == "FINISHED" and run.info.end_time is not None
    expected = flatten({name: params.section(name) for name in ("download", "preprocess", "train")})
    assert run.data.params == {name: str(value) for name, value in expected.items()}
    history = client.get_metric_history(id_of(run), "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]
    assert run.data.metrics == {"loss": 0.5, "rate": 3.0} and pictures("samples") == [1, 2]
    assert run.data.tags["mood"] == "cheerful" and run.data.tags["profile"] == params.profile
    assert [file.path for file in client.list_artifacts(id_of(run), "training")] == ["training/losses.csv"]


def test_a_run_names_code_data_and_each_stages_flow_run(record, monkeypatch):
    tags = {"git_commit": "a" * 40, "dvc_data": "b.dir", "prefect_flow_run": "wise-owl", "prefect_flow_run_id": "0a1b"}
    monkeypatch.setenv("DDPM_PREFECT_FLOW_RUN", "wise-owl")
    monkeypatch.setattr("tracking.runs.read_lineage", lambda: tags)
    trained = record()
    monkeypatch.setattr("tracking.runs.read_lineage", lambda: {"prefect_flow_run_id": "2c3d"})
    run = record("sample", id_of(trained))
    assert run.info.run_name == "wise-owl" and run.data.tags["mlflow.source.git.commit"] == "a" * 40
    tags |= {"train.prefect_flow_run_id": "0a1b", "sample.prefect_flow_run_id": "2c3d"}
    assert tags.items() <= run.data.tags.items() and "train.dvc_data" not in run.data.tags


@pytest.mark.parametrize("are_events_read", [False, True])
def test_a_run_is_announced_once_it_is_open(record, monkeypatch, capsys, are_events_read):
    if are_events_read:
        monkeypatch.setenv("DDPM_EVENTS", "events")
    trained = record()
    record("sample", id_of(trained))  # is known
    other = record("sample", id_of(trained), {"sample.seed": 7})
    opened = [RunOpened(id_of(run), run.info.experiment_id) for run in (trained, other)]
    printed = capsys.readouterr().out.splitlines()
    if are_events_read:
        assert [*map(parse_event, Path("events").read_text().splitlines())] == opened and printed == []
    else:
        assert printed == [
            f"{stage}: MLflow run {run.run_id} of experiment {run.experiment_id}"
            for stage, run in zip(("train", "sample"), opened, strict=True)
        ]


def test_a_run_keeps_the_names_of_its_sweeps(record, monkeypatch):
    monkeypatch.setenv("DDPM_SWEEP", "owls")
    trained = record()
    monkeypatch.setenv("DDPM_SWEEP", "rooks")
    for _ in range(2):
        run = record("sample", id_of(trained))
    assert (trained.data.tags[SWEEP_TAG], run.data.tags[SWEEP_TAG]) == ("owls", "owls rooks")
    monkeypatch.delenv("DDPM_SWEEP")
    assert SWEEP_TAG not in record().data.tags


@pytest.fixture
def is_sending(monkeypatch):
    """Whether metrics and images reach the store; while it is cleared they wait."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # it warns of itself, so not at the top

    def hold(owner, name):
        send = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **named: event.wait(60) and send(*given, **named))

    event = threading.Event()
    event.set()
    hold(SqlAlchemyStore, "log_batch")
    hold(LocalArtifactRepository, "log_artifact")
    return event


# The fixture comes first: a store keeps the `log_batch` that it finds when it is made, with the first client.
def test_records_that_wait_hold_nothing_up_and_are_sent_before_the_end(is_sending, client, make_params):
    with open_run(make_params()) as tracker:
        is_sending.clear()
        for step in range(3):
            tracker.record_metrics({"loss": float(step)}, step)
            tracker.record_image("samples", PICTURE, step)
        assert client.get_metric_history(tracker.run_id, "loss") == [] and pictures("samples") == []
        is_sending.set()
    metrics = [metric.step for metric in client.get_metric_history(tracker.run_id, "loss")]
    assert metrics == pictures("samples") == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ZeroDivisionError(), "FAILED"),
        (Interrupted("SIGTERM"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(1), "KILLED"),
    ],
)
def test_a_run_ends_as_its_stage_does_and_is_resumed(client, runs, make_params, error, status):
    def fail():
        with open_run(make_params()) as tracker:
            tracker.record_metrics({"loss": 1.0}, 1)
            raise error

    with pytest.raises(type(error)):
        fail()
    (run,) = runs()
    assert run.info.status == status
    with open_run(make_params(), "train", id_of(run)) as tracker:
        assert client.get_run(id_of(run)).info.status == "RUNNING"
        tracker.record_metrics({"loss": 0.5}, 2)
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(id_of(run), "loss")] == [1, 2]


def test_a_training_carried_further_gets_a_run_with_its_own_parameters(record):
    trained = record()
    further = record("train", id_of(trained), {"train.num_steps": 50})
    assert id_of(further) != id_of(trained) and further.data.params["train.num_steps"] == "50"
    assert further.data.tags["ddpm.continues"] == id_of(trained)


@pytest.mark.parametrize("how", ["of another database", "named otherwise there", "deleted"])
@pytest.mark.parametrize("stage", ["train", "sample"])
def test_where_the_earlier_run_is_gone_there_is_a_new_one(client, runs, record, stage, how):
    gone = {"of another database": "0" * 32, "named otherwise there": "train/7"}.get(how)
    if gone is None:
        gone = id_of(record())
        client.delete_run(gone)
    run = record(stage, gone)
    assert id_of(run) != gone and run.data.params["train.num_steps"] == "6"
    assert run.data.tags["ddpm.continues" if stage == "train" else "ddpm.trained_in"] == gone
    if stage == "sample":
        assert id_of(record(stage, gone)) == id_of(run)


@pytest.mark.parametrize("stage", ["train", "sample"])
def test_a_server_that_hiccups_is_an_error_and_opens_no_second_run(runs, record, stage):
    def get_run(_self, _run_id):
        raise MlflowException("the database is locked")

    trained = record()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.get_run", get_run)
        with pytest.raises(TrackingError, match="refused: the database is locked"):
            record(stage, id_of(trained))
    assert [id_of(run) for run in runs()] == [id_of(trained)]


def test_later_stages_add_to_the_run_of_the_training(runs, record, make_params):
    trained, stages = record(), ("sample", "evaluate", "register")
    for stage in stages:
        assert id_of(record(stage, id_of(trained), tags={f"of.{stage}": "yes"})) == id_of(trained)
    (run,) = runs()
    assert run.info.status == "FINISHED" and {f"of.{stage}" for stage in stages} <= set(run.data.tags)
    sections = ("download", "preprocess", "reference", "train", *stages)
    assert set(run.data.params) == set(flatten({name: make_params().section(name) for name in sections}))


def test_another_experiment_on_the_same_model_gets_a_run_of_its_own(runs, record):
    trained = id_of(record())
    for changes in ({}, {"sample.seed": 7}):
        for stage in ("sample", "evaluate"):
            record(stage, trained, changes)
    one, other = runs()
    assert id_of(one) == trained and "ddpm.trained_in" not in one.data.tags
    assert other.data.tags["ddpm.trained_in"] == trained
    # It can be compared by what it was trained with, too.
    assert one.data.params | {"sample.seed": "7"} == other.data.params
    # Going back, and forth again, finds the run of each.
    assert id_of(record("sample", trained)) == trained
    assert id_of(record("sample", trained, {"sample.seed": 7})) == id_of(other)
    assert len(runs()) == 2


def test_a_long_parameter_is_kept_whole_and_splits_no_experiment(client, runs, record):
    names = [f"class {number}" for number in range(1000)]
    long = CONDITIONAL | {"sample.classes": names}
    trained = id_of(record("train", changes=long))
    for stage in ("sample", "evaluate", "register"):
        assert id_of(record(stage, trained, long)) == trained
    other = long | {"sample.classes": [*names[:-1], "another"]}
    assert id_of(record("sample", trained, other)) != trained
    value = client.get_run(trained).data.params["sample.classes"]
    assert value.startswith("['class 0', ") and "whole in params/sample.classes.txt" in value
    (kept,) = Path("mlartifacts", trained).rglob("sample.classes.txt")
    assert ast.literal_eval(kept.read_text()) in (names, tuple(names))


def test_parameters_of_stages_still_to_come_are_no_conflict(record):
    trained = id_of(record())
    record("evaluate", trained)
    assert id_of(record("sample", trained, {"evaluate.seed": 7})) == trained


@pytest.mark.parametrize("variable", [{"DDPM_TRACKING": "off"}, {"RANK": "1", "WORLD_SIZE": "2"}])
@pytest.mark.parametrize(("stage", "earlier"), [("train", None), ("sample", "0" * 32)])
def test_switched_off_or_in_another_process_nothing_is_tracked(
    folder, make_params, monkeypatch, variable, stage, earlier
):
    monkeypatch.delenv("DDPM_TRACKING")
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with open_run(make_params(), stage, earlier) as tracker:
        record_each_kind(tracker)
    assert tracker.run_id == tracker.experiment_id == ""
    assert list(folder.iterdir()) == [] and dict(os.environ) == before


def test_a_model_that_was_not_tracked_stays_untracked(client, make_params):
    with open_run(make_params(), "sample", "") as tracker:
        pass
    assert tracker.run_id == "" and client.get_experiment_by_name(EXPERIMENT) is None


def test_failing_records_are_reported_and_stop_nothing(make_params, client, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise MlflowException("the server is gone")

    with open_run(make_params()) as tracker:
        for name in ("log_batch", "log_image", "log_artifact", "set_terminated"):
            monkeypatch.setattr(f"mlflow.MlflowClient.{name}", fail)
        record_each_kind(tracker)
    # The four records, and the end of the run, after the announcement of the run.
    expected = ["tracking: warning: MLflow did not take a record (the server is gone)"] * 5
    assert capsys.readouterr().out.splitlines()[1:] == expected
