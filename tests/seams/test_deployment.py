"""The third door: a deployment, run by a worker, with MLflow behind a server of its own."""

import json
import re

import pytest
import requests

from tests.seams.checkout import stages_run
from tests.seams.servers import web

pytestmark = pytest.mark.xdist_group("service")  # one worker, which makes the servers once


def num_flow_runs(service):
    return service.api("POST", "/flow_runs/count")


def test_the_checkout_is_as_it_was_before(service, deployed_run):
    checkout = service.checkout
    assert checkout.git("status", "--porcelain") == ""
    assert checkout.read_yaml("params.yaml")["train"]["learning_rate"] == 0.002
    assert [path.name for path in (checkout.folder / "build").iterdir()] == ["checkpoints"]
    assert not (checkout.folder / "data").exists() and not (checkout.folder / "dvc.lock").exists()
    assert str(service.workspace(deployed_run).folder) not in checkout.git("worktree", "list")


def test_the_experiment_can_be_applied_and_dvc_has_nothing_to_do(applied, deployed_run):
    row = applied.rows()[deployed_run["name"]]
    measured = json.loads((applied.folder / "build/metrics.json").read_text())
    assert row["train.learning_rate"] == "0.001"
    assert applied.read_yaml("params.yaml")["train"]["learning_rate"] == 0.001
    assert measured["fd_efficientnet_lite0"] == pytest.approx(float(row["fd_efficientnet_lite0"]), rel=1e-3)
    assert (applied.folder / "build/model/averaged.safetensors").is_file()
    assert "up to date" in applied.dvc("status")
    assert stages_run(applied.dvc("repro")) == []


def test_the_run_page_links_to_the_mlflow_run_which_names_the_flow_run(service, deployed_run):
    link = re.search(r"\((http[^)]+)\)", service.artifacts(deployed_run)["mlflow-run"]["data"])[1]
    assert link.startswith(f"{service.mlflow}/#/experiments/")
    assert web.get(link, timeout=30).status_code == 200
    run = service.mlflow_run(service.mlflow_run_of(deployed_run))
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags["prefect_flow_run"] == deployed_run["name"]
    assert tags["prefect_flow_run_id"] == deployed_run["id"]
    assert run["info"]["status"] == "FINISHED"


def test_a_run_by_hand_uses_the_servers_that_the_environment_names(applied, tmp_path):
    output = applied.copy(tmp_path / "flowers").pipeline("--set", "register.enabled=false")
    assert stages_run(output) == ["register"] and "temporary Prefect server" not in output


def test_the_model_version_of_the_server_can_be_loaded_from_its_artifacts(service, deployed_run):
    (version,) = service.tracking("GET", "/model-versions/search", filter="name='flowers-ddpm'")["model_versions"]
    assert version["run_id"] == service.mlflow_run_of(deployed_run)
    listed = service.tracking("GET", "/artifacts/list", run_id=version["run_id"], path="samples")
    assert {file["path"] for file in listed["files"]} == {
        f"samples/{name}" for name in ("grid.png", "reverse_process.png", "reverse_process.webp")
    }


def test_a_run_tells_by_its_heartbeats_that_it_lives(service, deployed_run):
    resource, event = {"id": [f"prefect.flow-run.{deployed_run['id']}"]}, {"name": ["prefect.flow-run.heartbeat"]}
    found = service.api("POST", "/events/filter", filter={"event": event, "resource": resource})
    assert found["total"] > 0


@pytest.mark.parametrize(
    ("deployment", "parameters", "named"),
    [
        ("quickstart", {"params": {"train": {"num_steps": 0}}}, "num_steps"),
        ("quickstart", {"params": {"train": {"num_step": 5}}}, "num_step"),
        ("quickstart", {"params": {"trian": {"num_steps": 5}}}, "trian"),
        ("flowers102", {"workspace": "elsewhere"}, "workspace"),
        ("quickstart", {"profile": "tulips"}, "tulips"),
        ("evaluate-only", {"params": {"train": {"num_steps": 5}}}, "train"),
        ("evaluate-only", {"params": {"sample": {"sampler": "no_such"}}}, "sampler"),
    ],
)
def test_wrong_parameters_are_refused_before_a_run_is_made(service, deployed_run, deployment, parameters, named):
    before = num_flow_runs(service)
    with pytest.raises(requests.HTTPError) as refusal:
        service.start(deployment, **parameters)
    assert 400 <= refusal.value.response.status_code < 500
    assert named in refusal.value.response.text
    assert num_flow_runs(service) == before


def test_parameters_that_do_not_fit_together_fail_before_the_first_stage(service, deployed_run):
    run = service.ended(service.start("quickstart", params={"train": {"warmup_steps": 1000000}}))
    assert run["state"]["type"] == "FAILED"
    assert "warmup_steps=1000000 must not exceed num_steps" in run["state"]["message"]
    assert service.task_runs(run) == []
    assert service.checkout.git("status", "--porcelain") == ""
    assert not service.workspace(run).folder.exists()
