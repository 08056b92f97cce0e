"""`make up` itself: from start to Ctrl-C, and again."""

import json
import os
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.seams.checkout import wait_until
from tests.seams.servers import Service, free_port, running, wait_for_server, wait_until_up, web

pytestmark = [
    pytest.mark.xdist_group("checkouts"),  # one worker, which makes the experiment once
    pytest.mark.usefixtures("interruptible"),
]


@dataclass
class Up(Service):
    """`make up` in a checkout."""

    process: object
    log: Path

    def said(self):
        return self.log.read_text()

    def worker_is_online(self):
        workers = self.api("POST", "/work_pools/local/workers/filter")
        return [worker for worker in workers if worker["status"] == "ONLINE"]

    def one(self, words):
        """Return the only process of the checkout whose command holds these words."""
        (found,) = self.checkout.processes(words)
        return found


def make_up(ports):
    """Return the command `make up`, run in this interpreter's environment."""
    settings = [f"{name}={port}" for name, port in zip(("PREFECT_PORT", "MLFLOW_PORT"), ports, strict=True)]
    return ["make", "up", f"VENV={sys.prefix}", "--old-file", f"{sys.prefix}/installed", *settings]


@contextmanager
def started(checkout, ports, log):
    """Start `make up`, and wait until it says that all is up."""
    with running(make_up(ports), checkout.folder, checkout.environment, log) as process:
        wait_until_up(process, log)
        yield Up(*(f"http://127.0.0.1:{port}" for port in ports), checkout, process, log)


@pytest.fixture(scope="module")
def place(reproduced, tmp_path_factory):
    """Yield a checkout with an experiment made by DVC alone, and a folder for Prefect."""
    folder = tmp_path_factory.mktemp("up")
    checkout = reproduced.checkout.copy(folder / "flowers with a space")
    yield checkout.with_environment(PREFECT_HOME=str(folder / "prefect"), DDPM_GPU_SLOTS="2"), folder
    checkout.end_processes()


def test_up_and_down_and_up_again(place):
    checkout, folder = place
    ports = free_port(), free_port()
    with started(checkout, ports, folder / "first.log") as up:
        shows_what_is_set_up(up)
        shows_the_experiment_made_before(up)
        refuses_to_start_twice(up, ports)
        keeps_what_people_have_set_of_the_pool(up)
        retrains_when_the_data_have_changed(up)
        starts_again_what_was_killed(up)
        up.api("POST", "/variables/", name="kept", value="over the night")
        ends_with(up, lambda: os.killpg(up.process.pid, signal.SIGINT), statuses={130, 2, -2})  # as the terminal does
    with started(checkout, ports, folder / "second.log") as up:
        shows_what_is_set_up(up)
        assert up.api("GET", "/variables/name/kept")["value"] == "over the night"
        pool = up.api("GET", "/work_pools/local")
        assert (pool["concurrency_limit"], pool["is_paused"]) == (3, False)
        ends_with(up, up.one("-m flows.cli up").terminate, statuses={0})


def shows_what_is_set_up(up):
    wait_until(up.worker_is_online, "the worker")
    assert up.api("GET", "/work_pools/local")["type"] == "process"
    expected = up.checkout.read_yaml("prefect.yaml")["deployments"]
    deployments = up.api("POST", "/deployments/filter")
    assert {deployment["name"] for deployment in deployments} == {deployment["name"] for deployment in expected}
    automations = up.api("POST", "/automations/filter")
    names = sorted(automation["name"] for automation in automations if automation["enabled"])
    assert names == ["A run that has gone silent has crashed", "Retrain when the data have changed"]
    assert up.mlflow in up.said()
    assert up.prefect in up.said()


def shows_the_experiment_made_before(up):
    """Check that the MLflow server shows figures and pictures of a run that DVC made without it."""
    run_id = json.loads((up.checkout.folder / "build/metrics.json").read_text())["mlflow_run_id"]
    metrics = up.mlflow_run(run_id)["data"]["metrics"]
    assert {"loss", "fd_efficientnet_lite0"} <= {metric["key"] for metric in metrics}
    answer = web.get(f"{up.mlflow}/get-artifact", params={"run_id": run_id, "path": "samples/grid.png"}, timeout=30)
    assert answer.status_code == 200
    assert answer.content == (up.checkout.folder / "build/samples/grid.png").read_bytes()


def refuses_to_start_twice(up, ports):
    before = up.checkout.processes("supervisord")
    output = up.checkout.run(*make_up((free_port(), free_port())), status=2)
    assert "is running already: stop it by Ctrl-C" in output
    with_own_state = up.checkout.copy(up.checkout.folder.parent / "another clone")
    output = with_own_state.run(*make_up(ports), status=2)
    assert f"cannot listen on 127.0.0.1 port {ports[0]}: Address already in use" in output
    assert "make up PREFECT_PORT=" in output
    assert up.checkout.processes("supervisord") == before


def retrains_when_the_data_have_changed(up):
    """Follow the example of docs/operations.md; the paused pool keeps the run waiting."""
    checkout = up.checkout.with_environment(PREFECT_API_URL=f"{up.prefect}/api")
    checkout.run("prefect", "work-pool", "pause", "local")
    checkout.run("prefect", "event", "emit", "flowers.data.changed", "--resource-id", "flowers.data")
    (run,) = wait_until(up.flow_runs, "the run that the event starts")
    assert run["parameters"]["profile"] == "quickstart"
    assert run["created_by"]["type"] == "AUTOMATION"
    checkout.run("prefect", "flow-run", "delete", run["id"])
    checkout.run("prefect", "work-pool", "resume", "local")


def keeps_what_people_have_set_of_the_pool(up):
    up.api("PATCH", "/work_pools/local", concurrency_limit=3)


def starts_again_what_was_killed(up):
    killed = {"mlflow": up.one("mlflow.server.fastapi_app"), "worker": up.one("prefect worker start")}
    for process in killed.values():
        process.kill()
    for name in killed:
        wait_until(lambda name=name: f"{name} has ended and was started again" in up.said(), f"{name} again")
    wait_for_server(up.process, f"{up.mlflow}/health", up.log)


def ends_with(up, end, statuses):
    end()
    assert up.process.wait(timeout=60) in statuses
    assert up.checkout.processes() == []
    assert "Stopped." in up.said()
    assert "Traceback" not in up.said()
