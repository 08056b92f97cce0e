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
SEED = 1

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

    def live(self, moment, where):
        """Kill it: so long after its start, or so long after its training began, or in the next saving after that."""
        known = torn(self.folder)
        if where != "imports":
            self.wait_for_training()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(moment)
        while where == "saving" and self.process.poll() is None and torn(self.folder) <= known:
            pass  # a saving takes a few milliseconds
        assert self.process.poll() is None, f"it ended before it could be killed:\n{self.log.read_text()}"
        self.kill()

    def wait_for_training(self):
        while not self.is_training():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)

    def finish(self):
        assert self.process.wait(400) == 0, self.log.read_text()

    def kill(self):
        self.process.kill()
        self.process.wait()


def newest_step(folder):
    paths = (folder / "build/checkpoints").glob("*/step_*.safetensors")
    return max((int(path.stem.removeprefix("step_")) for path in paths), default=0)


def torn(folder):
    """The files of savings under way, or that a death has left, by their names."""
    names = (name for _, _, files in os.walk(folder / "build/checkpoints") for name in files)
    return {name for name in names if name.startswith(".")}


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
    spared.wait_for_training()
    seconds_of_imports = time.monotonic() - spared.started
    spared.finish()
    seconds = time.monotonic() - spared.started
    print(f"\nspared: imports {seconds_of_imports:.1f} s, all {seconds:.1f} s; seed {SEED}")

    chance, started, killed = random.Random(SEED), time.monotonic(), spared.folder.with_name("killed")
    places = ["imports"] * 6 + ["training"] * 7 + ["saving"] * 7
    chance.shuffle(places)
    num_training, num_torn, step = 0, 0, 0
    for number, where in enumerate(places, start=1):
        life, before, torn_before = start("killed"), step, torn(killed)
        moment = chance.uniform(0.0, seconds_of_imports if where == "imports" else 2.0)
        life.live(moment, where)
        step = newest_step(killed)
        is_torn = not torn(killed) <= torn_before
        num_training += life.is_training()
        num_torn += is_torn
        print(f"kill {number:2} {where:8} {moment:.2f} s: steps {before} to {step}{', and one torn' * is_torn}")
        assert step > before if life.is_training() and moment > 1.0 else step >= before
    start("killed").finish()
    seconds = time.monotonic() - started
    print(f"{len(places)} kills, {num_training} after training had begun, {num_torn} in a saving; {seconds:.0f} s")
    assert results(killed) == results(spared.folder)
    # Otherwise the moments were badly chosen, and the above shows less than it says.
    assert len(places) == 20 and num_training >= 10 and num_torn >= 1 and 0 < step < CHANGES["train.num_steps"]
