"""Several deployed runs on one machine share its GPU slot, can be cancelled and continued, and may be killed."""

import fcntl
import signal
from pathlib import Path

import pytest

from tests.seams.checkout import ENDLESS, step_of, wait_until

pytestmark = [
    pytest.mark.xdist_group("service"),  # one worker, which makes the servers once
    pytest.mark.timeout(600),  # several runs, which may share two cores with other tests
]


def start(service, name, **train):
    """Start a run that trains and does little else."""
    return service.start(
        "quickstart",
        name=name,
        params={"train": train, "evaluate": {"enabled": False}, "register": {"enabled": False}},
    )


def is_slot_taken(service):
    with Path(service.checkout.environment["DDPM_SLOTS_FOLDER"], "cpu-0").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def trains(service, run):
    return bool(service.workspace(run).processes("stages.train"))


def mlflow_runs(service, run):
    """Return the MLflow runs to which a flow run's training has written."""
    return service.tagged_runs("train.prefect_flow_run_id", run["id"])


def num_losses(service, run):
    asked = [{"run_id": one["info"]["run_id"], "metric_key": "loss"} for one in mlflow_runs(service, run)]
    return sum(len(service.tracking("GET", "/metrics/get-history", **one).get("metrics", [])) for one in asked)


def test_a_run_waits_for_the_slot_and_goes_on_from_the_cancelled_one(service):
    runs, num_training = [start(service, "first", seed=3, **ENDLESS)], []

    def wait(condition, what, seconds):
        def check():
            num_training.append(sum(trains(service, run) for run in runs))
            return condition()

        return wait_until(check, what, seconds)

    (first,) = runs
    wait(lambda: num_losses(service, first) > 3, "the first training", 200)
    second = start(service, "second", seed=3, **ENDLESS)
    runs.append(second)
    wait(lambda: "Waiting for a free slot: other runs compute on cpu-0" in service.log_of(second), "the wait", 120)
    assert is_slot_taken(service)

    before, (recorded,) = service.checkout.checkpoints(), mlflow_runs(service, first)
    service.cancel(first)
    ended = wait(lambda: service.has_ended(first), "the end of the first", 120)
    assert ended["state"]["type"] == "CANCELLED" and not service.workspace(first).folder.exists()
    (saved,) = service.checkout.checkpoints() - before

    wait(lambda: "going on from build/checkpoints/" in service.log_of(second), "the second training", 240)
    (continued,) = wait(lambda: mlflow_runs(service, second), "the MLflow run", 60)
    assert continued["info"]["run_id"] == recorded["info"]["run_id"]
    service.cancel(second)
    assert service.ended(second)["state"]["type"] == "CANCELLED"
    assert not is_slot_taken(service) and max(num_training) == 1
    assert f"SIGINT at step {step_of(saved)}, kept in build/checkpoints/" in service.log_of(first)
    log = service.log_of(second)
    assert log.index("Waiting for a free slot") < log.index("Got a slot") < log.index("going on from")


@pytest.mark.slow
def test_a_killed_run_frees_its_slot_and_the_next_clears_up(service):
    killed = start(service, "killed", seed=3, **ENDLESS)
    workspace = service.workspace(killed)
    wait_until(lambda: trains(service, killed), "the training", seconds=200)
    wait_until(lambda: mlflow_runs(service, killed), "its MLflow run", seconds=60)
    before = service.checkout.checkpoints()
    for process in workspace.processes("prefect"):
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not workspace.processes(), "the stage's own end", seconds=30)
    assert service.checkout.checkpoints() - before, "the stage has noticed, and saved its work"
    assert service.ended(killed)["state"]["type"] == "CRASHED"
    assert workspace.folder.is_dir() and not is_slot_taken(service)

    following = start(service, "following", learning_rate=0.004)
    wait_until(service.workspace(following).folder.is_dir, "the next run", seconds=60)
    assert not workspace.folder.exists()
    assert service.ended(following, seconds=240)["state"]["type"] == "COMPLETED"
