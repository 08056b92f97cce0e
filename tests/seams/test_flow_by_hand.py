"""The second door: `flowers run`, on a temporary Prefect server."""

import os
import signal
import sqlite3
from contextlib import ExitStack, closing

import pytest

from tests.seams.checkout import BEHIND_A_DEAD_PROXY, ENDLESS, command, stages_run, step_of, wait_until
from tests.seams.servers import running

pytestmark = pytest.mark.xdist_group("checkouts")  # one worker, which makes the experiment once


@pytest.fixture
def start_training(checkout, tmp_path):
    """Start the flow, wait until its training has logged losses, and return the process and its log."""
    contexts = ExitStack()

    def start(name):
        log = tmp_path / f"{name}.log"
        settings = [word for name, value in ENDLESS.items() for word in ("--set", f"train.{name}={value}")]
        process = contexts.enter_context(running(command("run", *settings), checkout.folder, checkout.environment, log))
        num_before = num_losses(checkout)

        def is_training():
            assert process.poll() is None, log.read_text()
            return num_losses(checkout) >= num_before + 3

        wait_until(is_training, "losses of the training", seconds=120)
        return process, log

    with contexts:
        yield start


def num_losses(checkout):
    with closing(sqlite3.connect(f"file:{checkout.folder / 'mlflow.db'}?mode=ro", uri=True, timeout=10)) as database:
        return database.execute("select count(*) from metrics where key = 'loss'").fetchone()[0]


def test_a_changed_parameter_is_brought_up_to_date_and_every_door_agrees(checkout):
    output = checkout.pipeline("--set", "sample.seed=7")
    for name in ("pictures", "build/samples/grid.png", "metrics", "fd_efficientnet_lite0", "(95 %: ", "MLflow run"):
        assert name in output
    assert "Stage 'train' didn't change, skipping" in output
    assert stages_run(output) == ["sample", "evaluate", "register"]
    assert "temporary Prefect server" in output
    assert "up to date" in checkout.dvc("status")
    assert stages_run(checkout.dvc("repro")) == []

    stale = checkout.with_environment(
        PREFECT_API_URL="http://127.0.0.1:9/api", MLFLOW_TRACKING_URI="http://127.0.0.1:9"
    )
    again = stale.pipeline("--set", "sample.seed=7")
    assert "Everything is up to date" in again
    assert "temporary Prefect server" not in again
    assert checkout.processes() == []


@pytest.mark.slow
def test_an_isolated_run_uses_the_cache_and_leaves_the_checkout_alone(checkout):
    (checkout.folder / "build/metrics.json").write_text("{}")  # what stands here is not what it works on
    output = checkout.with_environment(**BEHIND_A_DEAD_PROXY).pipeline(
        "--isolated", "--set", "sample.seed=1", "--set", "sample.seed=0"
    )
    assert stages_run(output) == []
    (name,) = checkout.dvc("exp", "list", "--name-only").split()
    assert f"`dvc exp apply {name}` brings it into the checkout" in output
    assert (checkout.folder / "build/metrics.json").read_text() == "{}"
    assert checkout.git("status", "--porcelain") == ""
    assert [path.name for path in (checkout.folder / "workspaces").iterdir()] == [".changing"]
    assert checkout.processes() == []

    refusal = checkout.pipeline("--isolated", "--set", "train.num_step=7", status=1)
    assert "train.num_step is not a parameter; did you mean train.num_steps" in refusal.splitlines()[-1]


def end_by_control_c(process):
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: the temporary server gets it too


def end_by_sigterm(process):
    process.terminate()  # the flow alone, as `kill` does


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (end_by_control_c, 130, "SIGINT at "),
        pytest.param(end_by_sigterm, 143, "flowers run: ended by SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_flow_that_is_ended_saves_its_training_and_leaves_no_process(checkout, start_training, end, status, said):
    before = checkout.checkpoints()
    process, log = start_training("ended")
    end(process)
    assert process.wait(timeout=60) == status
    wait_until(lambda: not checkout.processes(), "the end of every process", seconds=10)
    (saved,) = checkout.checkpoints() - before
    assert f"step {step_of(saved)}, kept in build/checkpoints/" in log.read_text() and said in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_stage_whose_flow_is_killed_saves_and_the_next_run_goes_on(checkout, start_training):
    before = checkout.checkpoints()
    process, _ = start_training("killed")
    process.kill()
    process.wait(timeout=10)
    wait_until(lambda: not checkout.processes("stages.train"), "the end of the stage", seconds=15)
    wait_until(lambda: not checkout.processes(), "the end of DVC and of the temporary server", seconds=15)
    assert len(checkout.checkpoints() - before) == 1
    _, log = start_training("again")
    assert "going on from build/checkpoints/" in log.read_text()
