"""Several deployed runs on one machine: they share its GPU slot, can be cancelled and go on, and may be killed."""

import fcntl
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.seams.checkout import Checkout, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("service"),  # one worker, which makes the servers once
    pytest.mark.timeout(600),  # several runs, which may share two cores with other tests
]

# Training that would take days; only an interruption makes it save.
ENDLESS = {"seed": 3, "log_every": 20} | dict.fromkeys(("num_steps", "sample_every", "checkpoint_every"), 10_000_000)


def start(service, name, **train):
    """A run that trains, and does little else."""
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
    """How many are logged."""
    asked = {"run_id": mlflow_run["info"]["run_id"], "metric_key": "loss"}
    return len(service.tracking("/metrics/get-history", **asked).get("metrics", []))


def mlflow_runs(service, run_of_prefect):
    """Those that a flow run has written to."""
    experiments = service.tracking_post("/experiments/search", max_results=10).get("experiments", [])
    numbers = [experiment["experiment_id"] for experiment in experiments]
    wanted = f"tags.`train.prefect_flow_run_id` = '{run_of_prefect['id']}'"
    return service.tracking_post("/runs/search", experiment_ids=numbers, filter=wanted).get("runs", [])


def checkpoints(checkout):
    return set((checkout.folder / "build/checkpoints").glob("*/step_*"))


@dataclass
class Story:
    """Two runs that want the one slot; the first is cancelled, and started again."""

    waiting: SimpleNamespace = field(default_factory=SimpleNamespace)
    cancelled: SimpleNamespace = field(default_factory=SimpleNamespace)
    again: SimpleNamespace = field(default_factory=SimpleNamespace)
    most_training: int = 0


@pytest.fixture(scope="module")
def story(service):
    told = Story()
    first = start(service, "first", **ENDLESS)
    runs = [first]

    def watched(condition):
        def check():
            told.most_training = max(told.most_training, sum(trains(service, run) for run in runs))
            return condition()

        return check

    def is_learning(run):
        return any(losses_of(service, one) > 3 for one in mlflow_runs(service, run))

    wait_until(lambda: is_learning(first), "the first training", seconds=200)
    second = start(service, "second", learning_rate=0.003)
    runs.append(second)
    wait_until(watched(lambda: "Waiting for a free slot" in service.log_of(second)), "the wait", seconds=120)
    told.waiting.is_slot_taken = is_slot_taken(service)
    told.waiting.trains = trains(service, first)

    known = checkpoints(service.checkout)
    (told.cancelled.mlflow_run,) = mlflow_runs(service, first)
    service.cancel(first)
    wait_until(watched(lambda: not trains(service, first)), "the end of the training", seconds=20)
    told.cancelled.run = service.ended(first)
    told.cancelled.log = service.log_of(first)
    told.cancelled.saved = checkpoints(service.checkout) - known
    told.cancelled.folder_stays = service.workspace(first).folder.exists()

    again = start(service, "again", **ENDLESS)
    runs.append(again)
    wait_until(watched(lambda: "going on from build/checkpoints/" in service.log_of(again)), "the rest", seconds=240)
    wait_until(watched(lambda: mlflow_runs(service, again)), "the MLflow run", seconds=60)
    (told.again.mlflow_run,) = mlflow_runs(service, again)
    service.cancel(again)
    told.again.run = service.ended(again)
    wait_until(watched(lambda: service.has_ended(second)), "the second run", seconds=240)
    told.waiting.run, told.waiting.log = service.ended(second), service.log_of(second)
    return told


def test_a_run_waits_for_the_slot_of_another_and_says_so(story):
    assert story.waiting.trains and story.waiting.is_slot_taken
    assert story.waiting.log.index("Waiting for a free slot") < story.waiting.log.index("Got a slot")
    assert story.waiting.run["state"]["type"] == "COMPLETED"


def test_two_runs_are_never_both_in_training(story):
    assert story.most_training == 1


def test_a_cancelled_run_ends_its_training_saves_it_and_takes_its_worktree_along(story):
    assert story.cancelled.run["state"]["type"] == "CANCELLED"
    (saved,) = story.cancelled.saved
    assert f"SIGINT at step {int(saved.stem.removeprefix('step_'))}, kept in build/checkpoints/" in story.cancelled.log
    assert not story.cancelled.folder_stays


def test_the_same_run_started_again_goes_on_in_the_same_mlflow_run(story):
    assert story.again.mlflow_run["info"]["run_id"] == story.cancelled.mlflow_run["info"]["run_id"]
    assert story.again.run["state"]["type"] == "CANCELLED"


def test_afterwards_no_slot_is_taken(service, story):
    assert not is_slot_taken(service)


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
