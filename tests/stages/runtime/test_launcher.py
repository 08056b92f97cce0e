"""A stage in several processes: the results of one, and an end of all where one of them ends."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from ruamel.yaml import YAML
from safetensors.numpy import load_file
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

import stages.sample
import stages.train
from contract.errors import StageError
from stages.runtime.interruption import EXIT_INTERRUPTED, Interrupted
from stages.runtime.launcher import explain_failure
from stages.runtime.runner import EXIT_ERROR

PROJECT = Path(__file__).parents[3]
WEIGHTS = ("averaged", "raw")

pytestmark = pytest.mark.xdist_group("launcher")  # one worker, which makes each training once

# Each process draws the masks of dropout for itself; without it, several learn what one does.
EXPERIMENT = {
    "train.unet.dropout": 0.0,
    "train.num_steps": 80,
    "train.log_every": 10,
    "train.sample_every": 80,
    "train.checkpoint_every": 2,
}
TOGETHER = {"train.num_processes": 2, "sample.num_processes": 2}


class Job:
    """A stage that runs as DVC runs it, in a folder."""

    def __init__(self, stage, folder):
        self.folder, self.log = folder, folder / f"{stage}.log"
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "DDPM_TRACKING": "off"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"stages.{stage}"],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.workers = {}

    def wait_for_step(self, step):
        """Return as soon as a checkpoint of that step or a later one is there."""

        def is_there():
            assert self.process.poll() is None, self.log.read_text()
            return max(steps_kept(self.folder), default=0) >= step

        wait_until(is_there, f"step {step}", 60.0)
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.workers = {int(child.environ()["RANK"]): child for child in children if "RANK" in child.environ()}
        assert sorted(self.workers) == [0, 1]

    def ended(self, seconds=60.0):
        """Its status and what it said, once no process of it is left."""
        status = self.process.wait(seconds)
        return status, self.log.read_text()

    def is_left(self):
        """Whether a worker lives."""
        return any(is_alive(worker) for worker in self.workers.values())

    def end(self):
        """Leave nothing behind, whatever the test did."""
        for process in [self.process, *self.workers.values()]:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                process.kill()
        self.process.wait()


def is_alive(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(condition, what, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} seconds in vain for {what}"
        time.sleep(0.01)


def steps_kept(folder):
    paths = sorted((folder / "build/checkpoints").glob("*/step_*.safetensors"))
    return [int(path.stem.removeprefix("step_")) for path in paths]


def results(folder):
    """The weights and the table of losses."""
    weights = {name: load_file(folder / f"build/model/{name}.safetensors") for name in WEIGHTS}
    return weights, pd.read_csv(folder / "build/losses.csv")


def assert_same(one, other, rounding=1e-4):
    # Two halves of a batch are summed otherwise than the whole; each of the 80 steps goes on from the difference.
    (weights, losses), (other_weights, other_losses) = one, other
    pd.testing.assert_frame_equal(losses, other_losses, rtol=rounding, atol=0.0)
    for name in WEIGHTS:
        for key, values in weights[name].items():
            np.testing.assert_allclose(
                values, other_weights[name][key], rtol=0.0, atol=2 * rounding, err_msg=f"{name} {key}"
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, dataset, document):
    """Makes a folder with the dataset and the parameters of two processes."""

    def make(name):
        folder = tmp_path_factory.mktemp(name)
        with contextlib.chdir(folder):
            dataset()
            YAML(typ="safe").dump(document(EXPERIMENT | TOGETHER), Path("params.yaml"))
        return folder

    return make


@pytest.fixture(scope="module")
def alone(prepared, make_params):
    """The folder in which one process has trained and sampled."""
    folder = prepared("alone")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_TRACKING", "off")
        stages.train.main(make_params(EXPERIMENT))
        stages.sample.main(make_params(EXPERIMENT))
    return folder


@pytest.fixture(scope="module")
def together(prepared):
    """The folder in which two processes have trained without a stop."""
    folder = prepared("together")
    job = Job("train", folder)
    try:
        status, words = job.ended()
    finally:
        job.end()
    assert status == 0, words
    assert "80 steps of 4 on cpu by 2 processes" in words and words.count("parameters, 20 images") == 1
    return folder


@pytest.fixture
def start(folder):
    """Starts stages, whose processes end with the test."""
    jobs = []

    def begin(stage, folder):
        jobs.append(Job(stage, folder))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.end()


def test_two_processes_learn_what_one_does(alone, together):
    assert_same(results(together), results(alone))


def test_two_processes_draw_the_images_that_one_does(alone, start):
    before = {path.name: path.read_bytes() for path in (alone / "build/samples").iterdir()}
    status, words = start("sample", alone).ended()
    assert status == 0, words
    drawn = {path.name: path.read_bytes() for path in (alone / "build/samples").iterdir()}
    # Batches of other sizes: 12 images alone are 5, 5 and 2, in halves 5 and 1 twice.
    assert drawn.keys() == before.keys()
    pixels = np.load(alone / "build/samples/samples.npy").astype(int)
    (alone / "build/samples/samples.npy").write_bytes(before["samples.npy"])
    distance = np.abs(pixels - np.load(alone / "build/samples/samples.npy").astype(int))
    assert distance.max() <= 1 and (distance > 0).mean() < 0.001


def test_the_death_of_a_process_ends_the_job_and_one_process_goes_on(alone, prepared, start, make_params, monkeypatch):
    folder = prepared("killed")
    job = start("train", folder)
    job.wait_for_step(4)
    job.workers[1].kill()
    status, words = job.ended()
    assert status == EXIT_ERROR and not job.is_left()
    assert words.splitlines()[-1].startswith("train: error: process 1 of 2 was ended by SIGKILL")
    assert "Traceback" not in words
    assert max(steps_kept(folder)) < 80
    monkeypatch.chdir(folder)
    stages.train.main(make_params(EXPERIMENT))
    assert_same(results(folder), results(alone))


@pytest.mark.slow
def test_a_signal_lets_all_processes_save_and_the_next_run_goes_on(together, prepared, start):
    folder = prepared("interrupted")
    job = start("train", folder)
    job.wait_for_step(4)
    job.process.terminate()
    status, words = job.ended()
    assert status == EXIT_INTERRUPTED == 75 and not job.is_left()
    saved = max(steps_kept(folder))
    assert saved < 80 and f"at step {saved}, kept in build/checkpoints/" in words
    assert "train: warning: interrupted by SIGTERM; run it again to go on" in words and "Traceback" not in words
    status, words = start("train", folder).ended()
    assert status == 0, words
    assert f"step_{saved:09d}.safetensors" in words.split("going on from")[1]
    assert_same(results(folder), results(together), rounding=0.0)


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_it(prepared, start):
    folder = prepared("orphaned")
    job = start("train", folder)
    job.wait_for_step(4)
    job.process.send_signal(signal.SIGKILL)
    assert job.process.wait(10.0) == -signal.SIGKILL
    wait_until(lambda: not job.is_left(), "the workers' end", 20.0)


def failures(**ends):
    """Failures of processes that end as given: status, and seconds after the first."""
    made = {}
    for word, (exitcode, seconds) in ends.items():
        rank = int(word.removeprefix("rank_"))
        made[rank] = ProcessFailure(rank, 1, exitcode, "<N/A>")
        made[rank].timestamp = 1_000 + seconds
    return made


@pytest.mark.parametrize(
    ("ends", "first"),
    [
        ({"rank_1": (-9, 0)}, "process 1 of 2 was ended by SIGKILL"),
        # Who loses the other ends by that, and may be noticed in the same moment.
        ({"rank_0": (1, 0), "rank_1": (-9, 0)}, "process 1 of 2 was ended by SIGKILL"),
        ({"rank_0": (-11, 0), "rank_1": (1, 0)}, "process 0 of 2 was ended by SIGSEGV"),
        # The launcher ends those that are left by SIGTERM, and by SIGKILL where they do not heed it.
        ({"rank_1": (1, 0), "rank_0": (-15, 0)}, "process 1 of 2 ended with 1"),
        ({"rank_1": (1, 0), "rank_0": (75, 0)}, "process 1 of 2 ended with 1"),
        ({"rank_1": (1, 0), "rank_0": (-9, 30)}, "process 1 of 2 ended with 1"),
    ],
)
def test_the_process_that_failed_first_is_named(ends, first):
    error = explain_failure(failures(**ends), 2)
    assert isinstance(error, StageError) and str(error).startswith(first)


@pytest.mark.parametrize("other", [75, 1])  # who loses the other by that may call it an error
def test_processes_that_were_interrupted_are_no_failure(other):
    assert isinstance(explain_failure(failures(rank_0=(75, 0), rank_1=(other, 0)), 2), Interrupted)
