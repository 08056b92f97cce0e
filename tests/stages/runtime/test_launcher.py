"""A stage in several processes: the results of one, and an end of all where one of them ends."""

import contextlib
import shutil
import time

import numpy as np
import pandas as pd
import psutil
import pytest
from safetensors.numpy import load_file
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

import stages.sample
import stages.train
from contract.errors import StageError
from stages.runtime.interruption import Interrupted
from stages.runtime.launcher import explain_failure
from tests.stages.processes import StageProcess, steps_kept

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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, dataset, write_params):
    """Makes a folder with the dataset and the parameters of two processes."""

    def make(name):
        folder = tmp_path_factory.mktemp(name)
        with contextlib.chdir(folder):
            dataset()
            write_params(EXPERIMENT | TOGETHER)
        return folder

    return make


@pytest.fixture(scope="module")
def start():
    """Starts a stage, and waits for its two processes and a checkpoint; all end with the tests."""
    started = []

    def begin(stage, folder, step=None):
        job, workers = StageProcess(stage, folder), {}
        started.append(job)
        if step:
            job.wait_until(lambda: max(steps_kept(folder), default=0) >= step)
            children = psutil.Process(job.pid).children(recursive=True)
            workers |= {int(child.environ()["RANK"]): child for child in children if "RANK" in child.environ()}
            started.extend(workers.values())
            assert sorted(workers) == [0, 1]
        return job, workers

    yield begin
    for process in started:
        with contextlib.suppress(psutil.Error):
            process.kill()
            process.wait(10.0)


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
def together(prepared, start):
    """The folder in which two processes have trained without a stop."""
    folder = prepared("together")
    job, _ = start("train", folder)
    assert job.wait(250.0) == 0, job.words
    assert "80 steps of 4 on cpu by 2 processes" in job.words and job.words.count("parameters, 20 images") == 1
    return folder


def is_alive(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def assert_same(one, other, rounding=1e-4):
    """Compare the weights and the tables of losses in two folders."""
    # Two halves of a batch are summed otherwise than the whole; each of the 80 steps goes on from the difference.
    tables = [pd.read_csv(folder / "build/losses.csv") for folder in (one, other)]
    pd.testing.assert_frame_equal(*tables, rtol=rounding, atol=0.0)
    for name in WEIGHTS:
        weights, others = (load_file(folder / f"build/model/{name}.safetensors") for folder in (one, other))
        for key, values in weights.items():
            np.testing.assert_allclose(values, others[key], rtol=0.0, atol=2 * rounding, err_msg=f"{name} {key}")


def test_two_processes_learn_what_one_does(alone, together):
    assert_same(together, alone)


@pytest.mark.slow  # the shares of several processes are put together in tests/stages/sampling
def test_two_processes_draw_the_images_that_one_does(alone, start, tmp_path):
    folder = shutil.copytree(alone, tmp_path / "copy")
    job, _ = start("sample", folder)
    assert job.wait(250.0) == 0, job.words
    names, expected = ({path.name for path in (place / "build/samples").iterdir()} for place in (folder, alone))
    assert names == expected
    # Batches of other sizes: 12 images alone are 5, 5 and 2, in halves 5 and 1 twice.
    drawn, expected = (np.load(place / "build/samples/samples.npy").astype(int) for place in (folder, alone))
    distance = np.abs(drawn - expected)
    assert distance.max() <= 1 and (distance > 0).mean() < 0.001


def test_the_death_of_a_process_ends_the_job_and_one_process_goes_on(alone, prepared, start, make_params, monkeypatch):
    folder = prepared("killed")
    job, workers = start("train", folder, step=4)
    workers[1].kill()
    assert job.wait(250.0) == 1 and not any(map(is_alive, workers.values()))
    assert job.words.splitlines()[-1].startswith("train: error: process 1 of 2 was ended by SIGKILL")
    assert "Traceback" not in job.words
    assert max(steps_kept(folder)) < 80
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DDPM_TRACKING", "off")
    stages.train.main(make_params(EXPERIMENT))
    assert_same(folder, alone)


@pytest.mark.slow
def test_a_signal_lets_all_processes_save_and_the_next_run_goes_on(together, prepared, start):
    folder = prepared("interrupted")
    job, workers = start("train", folder, step=4)
    job.terminate()
    assert job.wait(250.0) == 75 and not any(map(is_alive, workers.values()))
    saved = max(steps_kept(folder))
    assert saved < 80 and f"at step {saved}, kept in build/checkpoints/" in job.words
    assert "train: warning: interrupted by SIGTERM; run it again to go on" in job.words and "Traceback" not in job.words
    job, _ = start("train", folder)
    assert job.wait(250.0) == 0, job.words
    assert f"step_{saved:09d}.safetensors" in job.words.split("going on from")[1]
    assert_same(folder, together, rounding=0.0)


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_it(prepared, start):
    job, workers = start("train", prepared("orphaned"), step=4)
    job.kill()
    end = time.monotonic() + 20.0
    while any(map(is_alive, workers.values())):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ([(1, 9), (-9, 0)], "process 1 of 2 was ended by SIGKILL"),
        # Who loses the other ends by that, and may be noticed in the same moment.
        ([(1, 0), (-9, 0)], "process 1 of 2 was ended by SIGKILL"),
        ([(-11, 0), (1, 0)], "process 0 of 2 was ended by SIGSEGV"),
        # The launcher ends those that are left by SIGTERM, and by SIGKILL where they do not heed it.
        ([(-15, 1), (1, 0)], "process 1 of 2 ended with 1"),
        ([(75, 9), (1, 0)], "process 1 of 2 ended with 1"),
        ([(-9, 30), (1, 0)], "process 1 of 2 ended with 1"),
        ([(75, 0), (75, 0)], "interrupted"),
        ([(75, 0), (1, 0)], "interrupted"),  # who loses the other by that may call it an error
    ],
)
def test_the_process_that_ended_first_gives_the_reason(ends, reason):
    failures = {}
    for rank, (status, seconds) in enumerate(ends):
        failures[rank] = ProcessFailure(rank, 1, status, "<N/A>")
        failures[rank].timestamp = 1_000 + seconds
    error = explain_failure(failures, 2)
    assert str(error).startswith(reason) and isinstance(error, Interrupted if reason == "interrupted" else StageError)
