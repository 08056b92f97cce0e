"""One MLflow run an experiment, in a real database of this test's own."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from contract.events import RunOpened, parse_event
from contract.params import flat
from stages.runtime.runner import Interrupted
from tracking.connection import EXPERIMENT, TrackingError
from tracking.runs import SWEEP_TAG, open_run, reopen_run

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
    with open_run(make_params()) as tracker:
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
    with open_run(params) as tracker:
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


def test_a_run_names_code_data_and_each_stages_flow_run(client, runs, make_params, monkeypatch):
    tags = {"git_commit": "a" * 40, "dvc_data": "b.dir", "prefect_flow_run": "wise-owl", "prefect_flow_run_id": "0a1b"}
    monkeypatch.setattr("tracking.runs.read_lineage", lambda: tags)
    with open_run(make_params()) as tracker:
        pass
    monkeypatch.setattr("tracking.runs.read_lineage", lambda: {"prefect_flow_run_id": "2c3d"})
    with reopen_run(make_params(), "sample", tracker.run_id):
        pass
    (run,) = runs()
    tags |= {"train.prefect_flow_run_id": "0a1b", "sample.prefect_flow_run_id": "2c3d"}
    assert tags.items() <= run.data.tags.items() and "train.dvc_data" not in run.data.tags
    assert run.data.tags["mlflow.source.git.commit"] == "a" * 40  # which the pages of MLflow link


def test_a_run_is_called_as_its_flow_run(client, make_params, monkeypatch):
    monkeypatch.setenv("DDPM_PREFECT_FLOW_RUN", "wise-owl")
    with open_run(make_params()) as tracker:
        pass
    assert client.get_run(tracker.run_id).info.run_name == "wise-owl"


@pytest.mark.parametrize("are_events_read", [False, True])
def test_a_run_is_announced_once_it_is_open(client, make_params, monkeypatch, capsys, folder, are_events_read):
    if are_events_read:
        monkeypatch.setenv("DDPM_EVENTS", str(folder / "events"))
    with open_run(make_params()) as tracker:
        pass
    with reopen_run(make_params(), "sample", tracker.run_id):
        pass  # the run is known
    with reopen_run(make_params({"sample.seed": 7}), "sample", tracker.run_id) as another:
        pass
    opened = [RunOpened(run.run_id, run.experiment_id) for run in (tracker, another)]
    printed = capsys.readouterr().out.splitlines()
    if are_events_read:
        assert [parse_event(line) for line in (folder / "events").open()] == opened and printed == []
    else:
        assert printed == [
            f"{stage}: MLflow run {run.run_id} of experiment {run.experiment_id}"
            for stage, run in zip(("train", "sample"), opened, strict=True)
        ]


def test_a_run_of_a_sweep_bears_its_name_and_keeps_those_of_earlier_ones(client, make_params, monkeypatch):
    monkeypatch.setenv("DDPM_SWEEP", "owls")
    with open_run(make_params()) as tracker:
        pass
    assert client.get_run(tracker.run_id).data.tags[SWEEP_TAG] == "owls"
    monkeypatch.setenv("DDPM_SWEEP", "rooks")
    for _ in range(2):
        with reopen_run(make_params(), "sample", tracker.run_id):
            pass
    assert client.get_run(tracker.run_id).data.tags[SWEEP_TAG] == "owls rooks"
    monkeypatch.delenv("DDPM_SWEEP")
    with open_run(make_params()) as alone:
        pass
    assert SWEEP_TAG not in client.get_run(alone.run_id).data.tags


@pytest.mark.parametrize("kind", ["metrics", "images"])
def test_records_that_wait_hold_nothing_up_and_are_sent_before_the_end(client, make_params, monkeypatch, kind):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # it warns of itself, so not at the top

    is_released = threading.Event()
    owner, name = (SqlAlchemyStore, "log_batch") if kind == "metrics" else (LocalArtifactRepository, "log_artifact")
    send = getattr(owner, name)
    with open_run(make_params()) as tracker:
        monkeypatch.setattr(owner, name, lambda *arguments: is_released.wait(60) and send(*arguments))
        for step in range(3):
            if kind == "metrics":
                tracker.record_metrics({"loss": float(step)}, step)
            else:
                tracker.record_image("samples", PICTURE, step)
        assert client.get_metric_history(tracker.run_id, "loss") == [] and pictures("samples") == []
        is_released.set()
    metrics = [metric.step for metric in client.get_metric_history(tracker.run_id, "loss")]
    assert (metrics or pictures("samples")) == [0, 1, 2]


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
    tracker = interrupt(open_run(make_params()), error)
    (run,) = runs()
    assert run.info.run_id == tracker.run_id and run.info.status == status


def test_a_resumed_training_goes_on_in_its_run(client, runs, make_params):
    first = interrupt(open_run(make_params()), Interrupted("SIGTERM"), {"loss": 1.0})
    with open_run(make_params(), first.run_id) as second:
        assert client.get_run(first.run_id).info.status == "RUNNING"
        second.record_metrics({"loss": 0.5}, 2)
    (run,) = runs()
    assert run.info.run_id == second.run_id and run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]


def test_a_training_carried_further_gets_a_run_with_its_own_parameters(client, make_params, trained):
    with open_run(make_params({"train.num_steps": 50}), trained) as further:
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
    with open_run(make_params(), gone) as tracker:
        pass
    assert tracker.run_id not in {trained, gone}
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    "enter",
    [
        open_run,
        lambda params, run_id: reopen_run(params, "sample", run_id),
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
        with reopen_run(params, stage, trained) as tracker:
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
            with reopen_run(params, stage, trained) as tracker:
                tracker.record_tags({"seed": str(params.sample.seed)})
    one, other = runs()
    assert one.info.run_id == trained and other.info.run_id == tracker.run_id
    assert other.data.tags["ddpm.trained_in"] == trained and "ddpm.trained_in" not in one.data.tags
    assert one.data.tags["seed"] == "0" and other.data.tags["seed"] == "7"
    # It can be compared by what it was trained with, too.
    assert one.data.params | {"sample.seed": "7"} == other.data.params

    # Going back, and forth again, finds the run of each.
    for params, run in ((first, one), (second, other)):
        with reopen_run(params, "sample", trained) as tracker:
            pass
        assert tracker.run_id == run.info.run_id
    assert len(runs()) == 2


def test_parameters_of_stages_still_to_come_are_no_conflict(runs, make_params, trained):
    with reopen_run(make_params(), "evaluate", trained):
        pass
    with reopen_run(make_params({"evaluate.seed": 7}), "sample", trained) as tracker:
        pass
    assert tracker.run_id == trained and len(runs()) == 1


def test_a_model_whose_run_is_gone_gets_a_run_that_names_it(runs, make_params, client):
    for _ in range(2):
        with reopen_run(make_params(), "sample", "0" * 32) as tracker:
            pass
    (run,) = runs()
    assert run.info.run_id == tracker.run_id and run.data.tags["ddpm.trained_in"] == "0" * 32
    assert run.data.params["train.num_steps"] == "6"


@pytest.mark.parametrize("variable", [{"DDPM_TRACKING": "off"}, {"RANK": "1"}])
@pytest.mark.parametrize("enter", [open_run, lambda params: reopen_run(params, "sample", "0" * 32)])
def test_switched_off_or_in_another_process_nothing_is_tracked(folder, make_params, monkeypatch, enter, variable):
    monkeypatch.delenv("DDPM_TRACKING")
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with enter(make_params()) as tracker:
        tracker.record_metrics({"loss": 1.0}, 1)
        tracker.record_image("samples", PICTURE)
        tracker.record_tags({"mood": "cheerful"})
        tracker.record_file(Path("missing"), "training")
    assert tracker.run_id == tracker.experiment_id == ""
    assert list(folder.iterdir()) == [] and dict(os.environ) == before


def test_a_model_that_was_not_tracked_stays_untracked(client, make_params):
    with reopen_run(make_params(), "sample", "") as tracker:
        pass
    assert tracker.run_id == "" and client.get_experiment_by_name(EXPERIMENT) is None


@pytest.mark.parametrize("are_events_read", [False, True])
def test_failing_records_are_reported_and_stop_nothing(
    client, make_params, monkeypatch, capsys, folder, are_events_read
):
    def fail(*arguments, **options):
        raise MlflowException("the server is gone")

    if are_events_read:
        monkeypatch.setenv("DDPM_EVENTS", str(folder / "events"))
    with open_run(make_params()) as tracker:
        for name in ("log_batch", "log_image", "log_artifact", "set_terminated"):
            monkeypatch.setattr(f"mlflow.MlflowClient.{name}", fail)
        tracker.record_metrics({"loss": 1.0}, 1)
        tracker.record_image("samples", PICTURE)
        tracker.record_tags({"mood": "cheerful"})
        tracker.record_file(Path("missing"), "training")
    printed = capsys.readouterr().err.splitlines()
    if are_events_read:
        events = [parse_event(line) for line in (folder / "events").open()]
        assert printed == [] and {event.level for event in events[1:]} == {"warning"}
        printed = [event.text for event in events[1:]]
    # The four records, and the end of the run.
    assert len(printed) == 5 and all(line.endswith("(the server is gone)") for line in printed)
