"""The deployment that evaluates a model which another run has trained."""

import json

import pytest

from tests.seams.checkout import stages_run

pytestmark = pytest.mark.xdist_group("service")  # one worker, which makes the servers once


@pytest.fixture(scope="module")
def evaluated(service, deployed_run):
    """Return the run that drew other samples with the first run's model."""
    changes = {"sample": {"seed": 7}, "evaluate": {"kernel_subsets": 3}}
    run = service.ended(service.start("evaluate-only", revision=deployed_run["name"], params=changes))
    assert run["state"]["type"] == "COMPLETED", service.log_of(run)
    return run


def test_it_draws_and_evaluates_and_does_nothing_else(service, evaluated):
    tasks = {run["name"].partition("-")[0] for run in service.task_runs(evaluated)}
    assert tasks == {"reference", "sample", "evaluate"}
    assert stages_run(service.log_of(evaluated)) == ["sample", "evaluate"]  # the features are known


def test_its_experiment_has_the_model_of_the_other_and_figures_of_its_own(service, evaluated, applied, tmp_path):
    made = service.checkout.copy(tmp_path / "flowers")
    made.dvc("exp", "apply", evaluated["name"])
    first, second = (one.read_yaml("dvc.lock")["stages"] for one in (applied, made))
    assert second["train"] == first["train"]
    assert made.read_yaml("params.yaml")["train"]["learning_rate"] == 0.001
    measured = json.loads((made.folder / "build/metrics.json").read_text())
    assert measured["kernel_subsets"] == 3 and measured["num_samples"] == 12
    status = made.dvc("status")
    assert "register" in status and not {"train", "sample", "evaluate"} & set(status.replace(":", "").split())


def test_its_mlflow_run_names_the_training(service, evaluated, applied):
    trained_in = json.loads((applied.folder / "build/model/run.json").read_text())["mlflow_run_id"]
    (run,) = service.tagged_runs("ddpm.trained_in", trained_in)
    assert {"key": "sample.seed", "value": "7"} in run["data"]["params"]


def test_a_revision_without_a_model_is_refused_before_a_stage(service, deployed_run):
    reasons = {"no-such-owl": "neither a git revision nor a DVC", "HEAD": "has no dvc.lock"}
    started = {revision: service.start("evaluate-only", revision=revision) for revision in reasons}
    for revision, reason in reasons.items():
        run = service.ended(started[revision])
        assert run["state"]["type"] == "FAILED" and reason in run["state"]["message"]
        assert service.task_runs(run) == []
