"""The first door: `dvc repro`, and what DVC promises about experiments, remotes and clones."""

import json

import pytest
from mlflow import MlflowClient

from contract.params import activate
from stages.datasets.pin import digest_folder, list_files
from tasks.stage import is_up_to_date
from tests.seams.checkout import STAGES, Checkout, stages_run

pytestmark = pytest.mark.xdist_group("checkouts")  # one worker, which makes the experiment once


@pytest.fixture(scope="module")
def mlflow_client(reproduced):
    return MlflowClient(f"sqlite:///{reproduced.checkout.folder / 'mlflow.db'}")


@pytest.fixture(scope="module")
def mlflow_run(reproduced, mlflow_client):
    """Return the only run of the experiment."""
    experiment = mlflow_client.get_experiment_by_name("flowers-ddpm")
    (run,) = mlflow_client.search_runs([experiment.experiment_id])
    return run


def pinned_digest(checkout):
    return checkout.read_yaml("data.dvc")["outs"][0]["md5"]


def digest_of_data(checkout):
    return digest_folder(list_files(checkout.folder / "data"))


def test_a_fresh_checkout_runs_every_stage_and_then_none(reproduced):
    assert stages_run(reproduced.output) == STAGES
    assert "up to date" in reproduced.checkout.dvc("status")
    assert stages_run(reproduced.checkout.dvc("repro")) == []
    assert reproduced.checkout.git("status", "--porcelain") == ""


def outputs_of(entries):
    """Return the paths of what a stage of dvc.yaml puts out."""
    outs = [out for kind in ("outs", "metrics", "plots") for out in entries.get(kind, [])]
    return {next(iter(out)) if isinstance(out, dict) else out for out in outs}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_data_that_it_reads(reproduced, stage):
    stages = reproduced.checkout.read_yaml("dvc.yaml")["stages"]
    others = set().union(*(outputs_of(entries) for name, entries in stages.items() if name != stage))
    opened = [f"{path}/" for reader, path in reproduced.opened if reader == stage]
    read = {output for output in others if any(path.startswith(f"{output}/") for path in opened)}
    assert read == {path for path in stages[stage]["deps"] if path.startswith("build/")}


def test_a_task_knows_whether_a_stage_has_work(reproduced, monkeypatch):
    folder = reproduced.checkout.folder
    monkeypatch.chdir(folder)
    before = (folder / "params.yaml").read_text()
    assert is_up_to_date("sample")
    activate(None, {"sample": {"seed": 7}}, folder / "params.yaml")
    assert not is_up_to_date("sample") and is_up_to_date("train")
    (folder / "params.yaml").write_text(before)


def test_one_mlflow_run_holds_parameters_metrics_and_lineage(reproduced, mlflow_client, mlflow_run):
    checkout, wanted = reproduced.checkout, reproduced.checkout.read_yaml("params.yaml")
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.params["train.num_steps"] == str(wanted["train"]["num_steps"])
    assert {name.partition(".")[0] for name in mlflow_run.data.params} == set(STAGES)
    steps = [metric.step for metric in mlflow_client.get_metric_history(mlflow_run.info.run_id, "loss")]
    num_steps, every = wanted["train"]["num_steps"], wanted["train"]["log_every"]
    assert steps == list(range(every, num_steps + 1, every))
    measured = json.loads((checkout.folder / "build/metrics.json").read_text())
    assert mlflow_run.data.metrics["fd_efficientnet_lite0"] == pytest.approx(measured["fd_efficientnet_lite0"])
    tags = mlflow_run.data.tags
    assert tags["profile"] == "quickstart"
    assert tags["git_commit"] == checkout.git("rev-parse", "HEAD~1").strip()
    assert tags["dvc_data"] == pinned_digest(checkout)
    assert tags["dvc_dataset"] == checkout.read_yaml("dvc.lock")["stages"]["preprocess"]["outs"][0]["md5"]


def test_the_model_is_registered_from_that_run(mlflow_client, mlflow_run):
    (version,) = mlflow_client.search_model_versions("name = 'flowers-ddpm'")
    assert (version.run_id, version.status) == (mlflow_run.info.run_id, "READY")


def test_the_receipt_holds_the_digest_that_dvc_gives_to_the_data(reproduced):
    receipt = json.loads((reproduced.checkout.folder / "build/download.json").read_text())
    assert receipt["digest"] == pinned_digest(reproduced.checkout) == digest_of_data(reproduced.checkout)


@pytest.mark.slow
def test_an_experiment_runs_from_its_changed_stage_on_and_can_be_compared(checkout):
    output = checkout.dvc("exp", "run", "--name", "slower", "-S", "train.learning_rate=1e-3")
    assert stages_run(output) == STAGES[STAGES.index("train") :]
    assert checkout.read_yaml("params.yaml")["train"]["learning_rate"] == 1e-3

    row = checkout.rows()["slower"]
    assert float(row["train.learning_rate"]) == 1e-3
    assert float(row["fd_efficientnet_lite0"]) > 0

    changes = json.loads(checkout.dvc("metrics", "diff", "--json"))
    assert "fd_efficientnet_lite0" in changes["build/metrics.json"]

    checkout.dvc("plots", "show")
    page = (checkout.folder / "dvc_plots/index.html").read_text()
    assert "Training loss" in page
    assert "grid.png" in page
    assert checkout.git("status", "--porcelain", "dvc_plots") == "", "what `dvc plots show` makes is ignored by git"


def test_a_clone_pulls_everything_and_has_nothing_to_do(checkout, tmp_path):
    checkout.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    checkout.commit("A store")
    checkout.dvc("push")
    checkout.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Checkout(tmp_path / "clone", checkout.environment)
    clone.dvc("pull")
    assert "up to date" in clone.dvc("status")
    assert stages_run(clone.dvc("repro")) == []
    assert digest_of_data(clone) == pinned_digest(checkout)


def test_a_clone_without_a_store_makes_the_same_bytes_again(checkout, tmp_path):
    checkout.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Checkout(tmp_path / "clone", checkout.environment)
    assert stages_run(clone.dvc("repro", "download", "preprocess")) == ["download", "preprocess"]
    assert digest_of_data(clone) == pinned_digest(checkout)
    assert clone.git("status", "--porcelain") == "", "data.dvc and dvc.lock are as they were committed"


def test_data_follow_the_parameters_there_and_back(checkout):
    first = pinned_digest(checkout)
    for seed in (1, 0):
        activate(None, {"download": {"synthetic": {"seed": seed}}}, checkout.folder / "params.yaml")
        assert stages_run(checkout.dvc("repro", "--single-item", "download")) == ["download"]
        assert digest_of_data(checkout) == pinned_digest(checkout)
        assert (pinned_digest(checkout) == first) == (seed == 0)
    assert checkout.git("status", "--porcelain") == ""
    assert "up to date" in checkout.dvc("status", "download", "data.dvc")
