"""Sweeps against the real servers: as deployments under a worker, and in process; and the comparison of their runs."""

import json

import pandas as pd
import pytest

from tests.seams.checkout import ENDLESS, RUNAWAY, command, wait_until

KID = "kid_efficientnet_lite0"

pytestmark = pytest.mark.timeout(600)  # the first test may wait for a whole sweep, on a machine that runs others, too

in_the_service = pytest.mark.xdist_group("service")
by_hand = pytest.mark.xdist_group("checkouts")


@in_the_service
def test_a_failed_trial_does_not_sink_the_sweep_and_is_named(service, owls):
    sweep, trials = owls
    assert sweep["state"]["type"] == "COMPLETED"
    assert sweep["state"]["message"] == "1 of 2 trials completed; not completed: owls-2"
    assert {name: run["state"]["type"] for name, run in trials.items()} == {"owls-1": "COMPLETED", "owls-2": "FAILED"}
    assert trials["owls-1"]["parameters"] == {
        "profile": "quickstart",
        "params": {"train": {"learning_rate": 0.0015}, "register": {"enabled": False}},
        "workspace": "isolated",
    }
    assert all(run["deployment_id"] == service.deployment("quickstart")["id"] for run in trials.values())


@in_the_service
def test_the_ranked_table_stands_on_the_page_and_in_a_file(service, owls):
    sweep, _ = owls
    shown = service.artifacts(sweep)["ranking"]
    rows = json.loads(shown["data"])
    best, failed = rows
    assert (best["trial"], failed["trial"], failed["state"]) == ("owls-1", "owls-2", "Failed")
    assert best[f"{KID}_low"] <= best[KID] <= best[f"{KID}_high"] and failed[KID] is None
    assert "is not finite" in failed["why"] and failed["train.unet.num_res_blocks"] == "8"
    table = pd.read_csv(service.checkout.folder / "build/sweeps/owls.csv")
    assert table["trial"].tolist() == ["owls-1", "owls-2"]
    assert table[KID][0] == pytest.approx(best[KID])
    assert f"{service.mlflow}/#/compare-runs?runs=" in shown["description"]


@in_the_service
def test_mlflow_has_the_trials_under_one_tag(service, owls):
    sweep, trials = owls
    rows = {row["trial"]: row for row in json.loads(service.artifacts(sweep)["ranking"]["data"])}
    runs = {run["info"]["run_id"]: run for run in service.tagged_runs("ddpm.sweep", "owls")}
    assert {row["run"] for row in rows.values()} == set(runs) and len(runs) == 2
    assert runs[rows["owls-2"]["run"]]["info"]["status"] == "FAILED"
    assert rows["owls-2"]["run"] == service.mlflow_run_of(trials["owls-2"])
    metrics = {metric["key"]: metric["value"] for metric in runs[rows["owls-1"]["run"]]["data"]["metrics"]}
    assert rows["owls-1"][KID] == pytest.approx(metrics[KID], rel=1e-12)


@in_the_service
def test_trials_share_what_was_prepared_once(service, owls):
    sweep, trials = owls
    told = [record["message"] for record in service.records(sweep)]
    assert any("'preprocess'" in message for message in told), "by the sweep itself, before its trials"
    for run in trials.values():
        messages = [record["message"] for record in service.records(run)]
        assert "Running stage 'preprocess':" not in messages
        assert "Stage 'preprocess' is cached - skipping run, checking out outputs" in messages


@in_the_service
def test_what_they_share_is_an_experiment_without_figures(service, owls):
    sweep, _ = owls
    rows = service.checkout.rows()
    assert rows[sweep["name"]][KID] == "!" and float(rows["owls-1"][KID])  # as DVC shows what there is not


@in_the_service
def test_the_log_has_the_levels_of_what_was_said_and_the_reason_once(service, owls):
    _, trials = owls
    records = service.records(trials["owls-2"])
    reasons = [record for record in records if "is not finite" in record["message"]]
    assert len(reasons) == 1 and reasons[0]["level"] == 40  # ERROR
    levels = {record["message"].split(",")[0]: record["level"] for record in records}
    assert levels["Running stage 'train':"] == 20  # INFO
    assert "is not finite" in trials["owls-2"]["state"]["message"]


@in_the_service
def test_the_page_of_a_trial_shows_progress_samples_losses_and_its_run(service, owls):
    _, trials = owls
    shown = service.artifacts(trials["owls-1"])
    assert shown["progress-train"]["type"] == "progress" and shown["progress-train"]["data"] == 100.0
    assert shown["samples-in-training"]["data"].startswith("Step 6\n\n![samples](data:image/png;base64,")
    losses = json.loads(shown["losses"]["data"])
    assert [row["step"] for row in losses] == [2, 4, 6] and all(row["loss"] > 0 for row in losses)
    assert {"metrics", "samples", "mlflow-run"} <= set(shown)


@pytest.mark.slow
@in_the_service
def test_a_cancelled_sweep_cancels_its_trials(service):
    started = service.api(
        "POST", f"/deployments/{service.deployment('quickstart', 'sweep')['id']}/create_flow_run",
        parameters={"grid": {"train.seed": [11, 12, 13]}, "params": {"train": ENDLESS}, "name": "cut"},
        state={"type": "SCHEDULED"},
    )  # fmt: skip

    def trials():
        return {run["name"]: run["state"]["type"] for run in service.flow_runs(tags={"all_": ["sweep:cut"]})}

    wait_until(lambda: list(trials().values()).count("RUNNING") == 2, "two running trials", seconds=240)
    service.cancel(started)
    wait_until(lambda: set(trials().values()) == {"CANCELLED"}, "the end of the trials", seconds=120)
    assert set(trials()) == {"cut-1", "cut-2"}
    wait_until(lambda: not service.checkout.processes("stages.train"), "the end of the trainings", seconds=60)


@pytest.fixture(scope="module")
def rooks(reproduced, tmp_path_factory):
    """Run a sweep by hand without a pool: DVC has one trial's results already, the other fails."""
    checkout = reproduced.checkout.copy(tmp_path_factory.mktemp("rooks") / "flowers")
    overrides = json.dumps([{"train.learning_rate": 0.002}, RUNAWAY])
    output = checkout.run(*command("sweep", "--overrides", overrides, "--name", "rooks"))
    yield checkout, output
    checkout.end_processes()


@pytest.mark.slow
@by_hand
def test_without_a_pool_trials_run_in_process_one_by_one(rooks):
    checkout, output = rooks
    assert "one after the other in this process, since there is no deployment pipeline/quickstart" in output
    assert "1 of 2 trials completed; not completed: rooks-2" in output.splitlines()
    table = pd.read_csv(checkout.folder / "build/sweeps/rooks.csv")
    assert table["trial"].tolist() == ["rooks-1", "rooks-2"] and table["state"].tolist() == ["Completed", "Failed"]
    assert table[KID].notna().tolist() == [True, False]
    assert "up to date" in checkout.dvc("status"), "the checkout itself is as it was"
    assert checkout.git("status", "--porcelain") == ""


@pytest.mark.slow
@by_hand
def test_the_run_that_made_a_cached_result_joins_the_sweep(rooks):
    checkout, _ = rooks
    table = pd.read_csv(checkout.folder / "build/sweeps/rooks.csv")
    made_it = json.loads((checkout.folder / "build/metrics.json").read_text())["mlflow_run_id"]
    assert table["run"].tolist()[0] == made_it
    output = checkout.run(*command("compare", "--sweep", "rooks"))
    assert made_it[:8] in output and table["run"].tolist()[1][:8] in output
