"""Twenty violent deaths at random moments leave no trace in what a training learns."""

import contextlib
import os
import random
import subprocess
import time

import pytest
from safetensors.numpy import load_file

from tests.stages.processes import StageProcess, steps_kept

SEED = 1

# Enough steps that twenty lives do not reach the end, and enough savings that each life gets on.
CHANGES = {
    "train.num_steps": 2000,
    "train.log_every": 7,
    "train.sample_every": 100,
    "train.checkpoint_every": 2,
    "train.extra_ema_decays": [0.5],
}


class Life(StageProcess):
    """One process of the training, from its start to its end."""

    def __init__(self, folder):
        self.started = time.monotonic()
        super().__init__("train", folder)

    def is_training(self):
        return " parameters, " in self.words

    def live(self, seconds, where, folder):
        """Kill it some seconds after its start, or after its training began, or in the next saving after that."""
        known = torn(folder)
        if where != "imports":
            self.wait_until(self.is_training)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(seconds)
        while where == "saving" and self.poll() is None and torn(folder) <= known:
            pass  # a saving takes a few milliseconds
        assert self.poll() is None, f"it ended before it could be killed:\n{self.words}"
        self.kill()
        self.wait()

    def finish(self):
        assert self.wait(400) == 0, self.words


def torn(folder):
    """The files of savings under way, or that a death has left, by their names."""
    names = (name for _, _, files in os.walk(folder / "build/checkpoints") for name in files)
    return {name for name in names if name.startswith(".")}


def results(folder):
    """All that the training leaves, to the bit."""
    model = {path.name: path.read_bytes() for path in (folder / "build/model").glob("*.safetensors")}
    (last,) = (folder / "build/checkpoints").glob(f"*/step_{CHANGES['train.num_steps']:09d}.safetensors")
    tensors = {name: tensor.tobytes() for name, tensor in load_file(last).items()}
    return model | {"losses.csv": (folder / "build/losses.csv").read_bytes(), "checkpoint": tensors}


@pytest.fixture
def start(tmp_path, dataset, write_params):
    """Starts a life of the training in the folder of that name."""
    lives = []

    def begin(name):
        folder = tmp_path / name
        if not folder.exists():
            folder.mkdir()
            with contextlib.chdir(folder):
                dataset()
                write_params(CHANGES)
        lives.append(Life(folder))
        return lives[-1]

    yield begin
    for life in lives:
        life.kill()
        life.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_at_random_moments_change_no_bit(start, tmp_path):
    spared = start("spared")
    spared.wait_until(spared.is_training)
    seconds_of_imports = time.monotonic() - spared.started
    spared.finish()

    chance, killed = random.Random(SEED), tmp_path / "killed"
    places = ["imports"] * 6 + ["training"] * 7 + ["saving"] * 7
    chance.shuffle(places)
    num_training, num_torn, step = 0, 0, 0
    for number, where in enumerate(places, start=1):
        life, before, torn_before = start("killed"), step, torn(killed)
        moment = chance.uniform(0.0, seconds_of_imports if where == "imports" else 2.0)
        life.live(moment, where, killed)
        step = max(steps_kept(killed), default=0)
        num_training += life.is_training()
        num_torn += not torn(killed) <= torn_before
        print(f"kill {number:2} {where:8} {moment:.2f} s: steps {before} to {step}; {num_torn} torn savings so far")
        assert step > before if life.is_training() and moment > 1.0 else step >= before
    start("killed").finish()
    assert results(killed) == results(tmp_path / "spared")
    # Otherwise the moments were badly chosen, and the above shows less than it says.
    assert len(places) == 20 and num_training >= 10 and num_torn >= 1 and 0 < step < CHANGES["train.num_steps"]
