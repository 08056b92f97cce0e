"""Twenty violent deaths at random moments leave no trace in what a training learns."""

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

PROJECT = Path(__file__).parents[2]
NUM_KILLS, SEED = 20, 1

# So many steps that twenty lives do not reach the end, and so many savings that each life gets on.
CHANGES = {
    "train.num_steps": 2000,
    "train.log_every": 7,
    "train.sample_every": 100,
    "train.checkpoint_every": 2,
    "train.extra_ema_decays": [0.5],
}


class Life:
    """One process of the training, from its start to its end."""

    def __init__(self, folder):
        self.folder = folder
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "DDPM_TRACKING": "off"}
        self.started, self.log = time.monotonic(), folder / "train.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stages.train"], cwd=folder, env=environment, stdout=log, stderr=log
            )

    def is_training(self):
        return " parameters, " in self.log.read_text()

    def live(self, seconds, is_saving):
        """Kill it after so many seconds, or in the next saving after them, and say whether it was training by then."""
        known = torn(self.folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, self.started + seconds - time.monotonic()))
        while is_saving and self.process.poll() is None and torn(self.folder) <= known:
            pass
        assert self.process.poll() is None, f"it ended before it could be killed:\n{self.log.read_text()}"
        self.kill()
        return self.is_training()

    def finish(self):
        assert self.process.wait(400) == 0, self.log.read_text()

    def kill(self):
        self.process.kill()
        self.process.wait()


def newest_step(folder):
    paths = (folder / "build/checkpoints").glob("*/step_*.safetensors")
    return max((int(path.stem.removeprefix("step_")) for path in paths), default=0)


def torn(folder):
    """The files that a death in the middle of a saving has left, by their names."""
    return {path.name for path in (folder / "build/checkpoints").glob("*/.*.tmp*")}


def tensors(path):
    """The bits of each tensor."""
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118 (not a mapping)


def results(folder):
    """All that the training leaves, to the bit."""
    model = {path.name: path.read_bytes() for path in (folder / "build/model").glob("*.safetensors")}
    (last,) = (folder / "build/checkpoints").glob(f"*/step_{CHANGES['train.num_steps']:09d}.safetensors")
    return model | {"losses.csv": (folder / "build/losses.csv").read_bytes(), "checkpoint": tensors(last)}


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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_at_random_moments_change_no_bit(start):
    spared = start("spared")
    while not spared.is_training():
        assert spared.process.poll() is None, spared.log.read_text()
        time.sleep(0.05)
    seconds_of_imports = time.monotonic() - spared.started
    spared.finish()
    seconds_of_training = time.monotonic() - spared.started - seconds_of_imports
    print(f"\nspared: imports {seconds_of_imports:.1f} s, training {seconds_of_training:.1f} s; seed {SEED}")

    moments, started = random.Random(SEED), time.monotonic()
    num_training, step, killed = 0, 0, None
    for number in range(1, NUM_KILLS + 1):
        life, before = start("killed"), step
        killed = life.folder
        is_saving = number % 3 == 0
        moment = moments.uniform(seconds_of_imports if is_saving else 0.0, 1.6 * seconds_of_imports)
        was_training = life.live(moment, is_saving)
        num_training += was_training
        step = newest_step(killed)
        assert step >= before and (was_training or step == before)
        what = f"training, steps {before} to {step}" if was_training else "imports"
        print(f"kill {number:2} after {moment:.2f} s: {what}; {len(torn(killed))} savings torn so far")
    num_torn = len(torn(killed))
    start("killed").finish()
    print(
        f"{NUM_KILLS} kills, {num_training} of them in training, {num_torn} of those in a saving; "
        f"{time.monotonic() - started:.0f} s"
    )
    # Otherwise the moments were badly chosen, and this shows less than it says.
    assert 5 <= num_training <= NUM_KILLS - 3 and num_torn >= 3 and 0 < step < CHANGES["train.num_steps"]
    assert results(killed) == results(spared.folder)
