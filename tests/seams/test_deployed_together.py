"""Several deployed runs on one machine share its GPU slot, can be cancelled and continued, and may be killed."""

import fcntl
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.seams.checkout import Checkout, wait_until

pytestmark = [
    pytest.mark.xdist_group("service"),  # one worker, which makes the servers once
    pytest.mark.timeout(600),  # several runs, which may share two cores with other tests
]

# Training that would take days; only an interruption makes it save.
ENDLESS = {"seed": 3, "log_every": 20} | dict.fromkeys(("num_steps", "sample_every", "checkpoint_every"), 10_000_000)


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


def losses_of(service, mlflow_run):
    """Return the number of logged losses."""
    asked = {"run_id": mlflow_run["info"]["run_id"], "metric_key": "loss"}
    return len(service.tracking("/metrics/get-history", **asked).get("metrics", []))


def mlflow_runs(service, run_of_prefect):
    """Return the MLflow runs to which a flow run has written."""
    experiments = service.tracking_post("/experiments/search", max_results=10).get("experiments", [])
    numbers = [experiment["experiment_id"] for experiment in experiments]
    wanted = f"tags.`train.prefect_flow_run_id` = '{run_of_prefect['id']}'"
    return service.tracking_post("/runs/search", experiment_ids=numbers, filter=wanted).get("runs", [])


def checkpoints(checkout):
    return set((checkout.folder / "build/checkpoints").glob("*/step_*"))


@dataclass
class Story:
    """Two runs of one experiment that want the one slot: the first is cancelled, and the second goes on from it."""

    first: dict
    second: dict
    first_log: str
    second_log: str
    is_slot_taken_while_waiting: bool
    saved: set
    first_folder_stays: bool
    mlflow_runs: list
    most_training: int


@pytest.fixture(scope="module")
def story(service):
    runs, num_training = [start(service, "first", **ENDLESS)], []

    def wait(condition, what, seconds):
        def check():
            num_training.append(sum(trains(service, run) for run in runs))
            return condition()

        wait_until(check, what, seconds)

    (first,) = runs
    wait(lambda: any(losses_of(service, one) > 3 for one in mlflow_runs(service, first)), "the first training", 200)
    second = start(service, "second", **ENDLESS)
    runs.append(second)
    wait(lambda: "Waiting for a free slot" in service.log_of(second), "the wait", 120)
    is_slot_taken_while_waiting = is_slot_taken(service)
    known, (recorded,) = checkpoints(service.checkout), mlflow_runs(service, first)
    service.cancel(first)
    wait(lambda: service.has_ended(first), "the end of the first", 120)
    saved, stays = checkpoints(service.checkout) - known, service.workspace(first).folder.exists()
    wait(lambda: "going on from build/checkpoints/" in service.log_of(second), "the second training", 240)
    wait(lambda: mlflow_runs(service, second), "the MLflow run", 60)
    (continued,) = mlflow_runs(service, second)
    service.cancel(second)
    return Story(
        first=service.ended(first),
        second=service.ended(second),
        first_log=service.log_of(first),
        second_log=service.log_of(second),
        is_slot_taken_while_waiting=is_slot_taken_while_waiting,
        saved=saved,
        first_folder_stays=stays,
        mlflow_runs=[one["info"]["run_id"] for one in (recorded, continued)],
        most_training=max(num_training),
    )


def test_a_run_waits_for_the_slot_of_another_and_says_so(story):
    assert story.is_slot_taken_while_waiting and story.most_training == 1
    waits = story.second_log.index("Waiting for a free slot")
    assert waits < story.second_log.index("Got a slot") < story.second_log.index("going on from")


def test_a_cancelled_run_saves_its_training_and_removes_its_worktree(story):
    assert story.first["state"]["type"] == "CANCELLED"
    (saved,) = story.saved
    assert f"SIGINT at step {int(saved.stem.removeprefix('step_'))}, kept in build/checkpoints/" in story.first_log
    assert not story.first_folder_stays


def test_the_next_run_goes_on_in_the_same_mlflow_run(story):
    assert len(set(story.mlflow_runs)) == 1
    assert story.second["state"]["type"] == "CANCELLED"


def test_afterwards_no_slot_is_taken(service, story):
    assert not is_slot_taken(service)


@pytest.mark.slow
def test_a_killed_run_frees_its_slot_and_the_next_clears_up(service):
    killed = start(service, "killed", **ENDLESS)
    folder = service.workspace(killed).folder
    wait_until(lambda: trains(service, killed), "the training", seconds=200)
    wait_until(lambda: mlflow_runs(service, killed), "its MLflow run", seconds=60)
    known = checkpoints(service.checkout)
    for process in Checkout(folder, service.checkout.environment).processes("prefect"):
        process.send_signal(signal.SIGKILL)
    wait_until(
        lambda: not Checkout(folder, service.checkout.environment).processes(), "the stage's own end", seconds=30
    )
    assert checkpoints(service.checkout) - known, "the stage has noticed, and saved its work"
    assert service.ended(killed)["state"]["type"] == "CRASHED"
    assert folder.is_dir() and not is_slot_taken(service)

    following = start(service, "following", learning_rate=0.004)
    wait_until(service.workspace(following).folder.is_dir, "the next run", seconds=60)
    assert not folder.exists()
    assert service.ended(following, seconds=240)["state"]["type"] == "COMPLETED"
