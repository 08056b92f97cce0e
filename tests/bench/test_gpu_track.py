"""A training on another machine gets an MLflow run here, which registration needs."""

import json
import shutil
from pathlib import Path

import pytest

from bench.gpu.track import require_setting, track
from bench.gpu.weights import PartsError
from contract.params import activate
from ddpm import UNetConfig

PROJECT = Path(__file__).parents[2]

LOSSES = "step,num_images_seen,loss,loss_t_quartile_1\n100,3200,0.5,\n200,6400,0.25,0.5\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Makes a checkout with a profile in force, and the results of a training of the published network."""

    def make(profile, **changes):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        monkeypatch.setenv("DDPM_TRACKING", "on")
        for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"):
            monkeypatch.setenv(name, "true")  # what is set there is taken away after the test
        shutil.copytree(PROJECT / "profiles", "profiles")
        activate(profile, {})
        unet = {name: list(each) if isinstance(each, tuple) else each for name, each in vars(UNetConfig()).items()}
        results = tmp_path / "results"
        results.mkdir()
        (results / "weights.json").write_text(json.dumps({"image_size": 64, "unet": unet} | changes))
        (results / "losses.csv").write_text(LOSSES)
        (results / "report.json").write_text("{}")
        return results

    return make


def test_the_run_holds_the_losses_the_report_and_the_parameters(home, tmp_path):
    results = home("flowers102")
    require_setting([results])
    (tmp_path / "model").mkdir()
    track(tmp_path / "model", [results])
    from mlflow import MlflowClient

    client, noted = MlflowClient(), json.loads((tmp_path / "model/run.json").read_text())
    run = client.get_run(noted["mlflow_run_id"])
    assert run.info.experiment_id == noted["mlflow_experiment_id"] and run.info.status == "FINISHED"
    assert run.data.params["train.num_steps"] == "24800"
    assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "loss")] == [
        (100, 0.5),
        (200, 0.25),
    ]
    assert [one.step for one in client.get_metric_history(run.info.run_id, "loss_t_quartile_1")] == [200]
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "training")}
    assert names == {"training/losses.csv", "training/report.json"}


@pytest.mark.parametrize(("profile", "changes", "message"), [
    ("quickstart", {}, "params.yaml holds the profile 'quickstart', which differs from the training in widths, "),
    ("flowers102", {"image_size": 8}, "'flowers102', which differs from the training in image_size: put flowers102 in"),
])  # fmt: skip
def test_parameters_of_another_experiment_are_refused(home, profile, changes, message):
    results = home(profile, **changes)
    with pytest.raises(PartsError, match=message):
        require_setting([results])
