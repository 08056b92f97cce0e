"""The seven tasks in real flows on a Prefect server, with a script in DVC's place."""

import json
import logging
from itertools import pairwise
from pathlib import Path

import httpx
import pandas as pd
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import tags
from prefect.runtime import flow_run

from contract.errors import FlowersError
from contract.stage_names import STAGES
from tasks import gpus, stage_tasks
from tasks.gpus import hold_slots
from tasks.stage import log_failures_once
from tasks.stage_tasks import MAX_ROWS, thin_losses

pytestmark = pytest.mark.xdist_group("prefect")  # one worker, which starts the server once


@pytest.fixture(autouse=True)
def place(prefect_server, driver, folder, write_params, monkeypatch):
    """A folder with what the stages would leave, on a machine without a GPU."""
    driver()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_params()
    Path("build/model").mkdir(parents=True)
    Path("build/samples").mkdir()
    Path("build/model/run.json").write_text('{"mlflow_run_id": "abc", "mlflow_experiment_id": "1"}')
    Path("build/metrics.json").write_text('{"fd": 1.5, "extractor": "inception"}')
    Path("build/samples/grid.png").write_bytes(b"picture")
    Path("build/losses.csv").write_text("step,loss\n2,0.5\n")


def run_tasks(*names, **options):
    """Run tasks in a flow; returns its final state and its artifacts."""

    @flow(name="flow")
    def run():
        log_failures_once()
        ids.append(flow_run.id)
        for name in names:
            getattr(stage_tasks, name).with_options(**options)()

    ids = []
    state = run(return_state=True)
    with get_client(sync_client=True) as client:
        found = client.read_artifacts()
    return state, {artifact.key: artifact for artifact in found if str(artifact.flow_run_id) == ids[0]}


def messages(log, level=logging.INFO):
    return [record.getMessage() for record in log if record.levelno >= level]


def test_each_task_runs_its_stage_and_shows_what_it_made(dvc, log):
    dvc('echo "$5"')
    state, artifacts = run_tasks(*STAGES)
    assert state.is_completed()
    assert [message for message in messages(log) if message in STAGES] == list(STAGES)
    assert set(artifacts) == {"mlflow-run", "losses", "samples", "metrics"}
    assert "http://127.0.0.1:5000/#/experiments/1/runs/abc" in artifacts["mlflow-run"].data
    assert json.loads(artifacts["losses"].data) == [{"step": 2, "loss": 0.5}]
    assert artifacts["samples"].data == "![samples](data:image/png;base64,cGljdHVyZQ==)"
    assert json.loads(artifacts["metrics"].data) == [
        {"metric": "fd", "value": 1.5}, {"metric": "extractor", "value": "inception"},
    ]  # fmt: skip


def test_a_running_stage_shows_its_progress_its_mlflow_run_and_its_samples(dvc):
    picture = Path("preview.png").absolute()
    picture.write_bytes(b"picture")
    events = [
        {"kind": "Progress", "text": "train: 1/4", "percent": 25.0},
        {"kind": "RunOpened", "run_id": "def", "experiment_id": "1"},
        {"kind": "PictureWritten", "path": str(picture), "step": 7},
    ]
    dvc("\n".join(f"echo '{json.dumps(event)}' >> $DDPM_EVENTS" for event in events))
    _, artifacts = run_tasks("train")
    assert artifacts["progress-train"].data == 25.0
    assert "/runs/def" in artifacts["mlflow-run"].data, "not the one of an earlier training"
    assert artifacts["samples-in-training"].data == "Step 7\n\n![samples](data:image/png;base64,cGljdHVyZQ==)"


def test_too_few_gpus_for_the_samples_are_found_before_the_training(dvc, driver, write_params):
    driver("GPU-rose")
    dvc("touch trained")
    write_params({"sample.num_processes": 2})
    state, _ = run_tasks("train")
    assert state.is_failed() and "sample.num_processes=2 takes as many GPUs, and this run may use 1" in state.message
    assert not Path("trained").exists()


def test_without_tracking_no_run_is_linked(dvc):
    Path("build/model/run.json").write_text('{"mlflow_run_id": "", "mlflow_experiment_id": ""}')
    dvc("true")
    assert set(run_tasks("train")[1]) == {"losses"}


def test_what_cannot_be_shown_fails_no_task(dvc, log):
    for path in ("build/metrics.json", "build/samples/grid.png", "build/losses.csv", "build/model/run.json"):
        Path(path).unlink()
    dvc("true")
    state, artifacts = run_tasks("train", "sample", "evaluate")
    assert state.is_completed() and artifacts == {}
    assert sum("the run page does not show" in message for message in messages(log, logging.WARNING)) == 4


def test_the_stage_knows_the_flow_run_and_its_sweep(dvc, log):
    dvc('echo "run $DDPM_PREFECT_FLOW_RUN, $DDPM_PREFECT_FLOW_RUN_ID, [$DDPM_SWEEP]"')
    with tags("a", "sweep:owls"):
        run_tasks("preprocess")
    run_tasks("preprocess")
    with get_client(sync_client=True) as client:
        runs = sorted(client.read_flow_runs(), key=lambda run: run.created)[-2:]
    assert [message for message in messages(log) if message.startswith("run ")] == [
        f"run {runs[0].name}, {runs[0].id}, [owls]",
        f"run {runs[1].name}, {runs[1].id}, []",
    ]


def test_a_failed_stage_is_logged_once_and_fails_the_run_with_its_reason(dvc, log):
    dvc('echo \'{"kind": "Failed", "reason": "no roses", "is_transient": false}\' >> $DDPM_EVENTS; exit 1')
    state, _ = run_tasks("train")
    assert "stage train failed: no roses" in state.message
    assert sum("no roses" in message for message in messages(log)) == 1
    assert all(record.exc_info is None for record in log)


def test_expected_errors_are_logged_without_a_traceback_bugs_with_one(log):
    @flow(name="flow")
    def fail(error):
        log_failures_once()
        raise error

    fail(FlowersError("no such parameter"), return_state=True)
    fail(httpx.ReadTimeout(""), return_state=True)
    for said in ("no such parameter", "the Prefect server does not answer: ReadTimeout('')"):
        assert said in messages(log, logging.ERROR)
    assert all(record.exc_info is None for record in log)
    fail(KeyError("a bug"), return_state=True)
    assert any(record.exc_info for record in log)


@pytest.mark.parametrize(("is_transient", "num_tries"), [("true", 3), ("false", 1)])
def test_a_download_is_tried_again_where_that_may_help(dvc, is_transient, num_tries):
    failed = f'{{"kind": "Failed", "reason": "timed out", "is_transient": {is_transient}}}'
    dvc(f"echo tried >> tries; echo '{failed}' >> $DDPM_EVENTS; exit 1")
    state, _ = run_tasks("download", retry_delay_seconds=0)
    assert state.is_failed() and Path("tries").read_text().count("tried") == num_tries


def test_no_other_task_is_tried_again():
    retries = {name: getattr(stage_tasks, name).retries for name in STAGES}
    assert {name for name, number in retries.items() if number} == {"download"}


def test_a_stage_that_is_up_to_date_waits_for_no_slot(dvc, log, monkeypatch):
    monkeypatch.setattr(gpus, "NOTICE_SECONDS", 0.05)
    dvc('case "$*" in *status*) echo "{}";; *) echo "up to date";; esac')
    with hold_slots(1):
        state, _ = run_tasks("reference")
    assert state.is_completed() and "up to date" in messages(log)


def test_the_losses_are_thinned_evenly_and_keep_both_ends(tmp_path):
    steps = pd.DataFrame({"step": range(25, 25 * 101, 25), "loss": [1.0 / 3.0] * 100})
    steps.to_csv(tmp_path / "losses.csv", index=False)
    rows = thin_losses(tmp_path / "losses.csv")
    assert len(rows) == MAX_ROWS
    assert rows[0] == {"step": 25, "loss": 0.333333} and rows[-1]["step"] == 2500
    assert {after["step"] - before["step"] for before, after in pairwise(rows)} == {50, 75}
    for few in (0, 1, 3, MAX_ROWS):
        steps[:few].to_csv(tmp_path / "losses.csv", index=False)
        assert [row["step"] for row in thin_losses(tmp_path / "losses.csv")] == steps["step"][:few].tolist()
