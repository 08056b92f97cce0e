"""Small trainings: to their end, interrupted by a signal, or with a loss that is not a number."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from ddpm.diffusion import GaussianDiffusion
from stages.runtime.interruption import Interrupted
from stages.train import main
from stages.training import loop


@pytest.fixture
def place(folder, dataset, signal_handlers):
    """A folder with the prepared dataset."""
    dataset()
    return folder


@pytest.fixture
def results():
    """Reads the bytes of all weights, and of the table of losses."""

    def read():
        paths = [*Path("build/model").glob("*.safetensors"), Path("build/losses.csv")]
        return {path.name: path.read_bytes() for path in paths}

    return read


@pytest.fixture
def train(place, make_params, results):
    """Trains, and gives the results."""

    def run(changes=None):
        main(make_params(changes))
        return results()

    return run


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, make_params, dataset):
    """The results of the small experiment."""
    with contextlib.chdir(tmp_path_factory.mktemp("uninterrupted")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_TRACKING", "off")
        dataset()
        main(make_params())
        weights = {path.name: path.read_bytes() for path in Path("build/model").glob("*.safetensors")}
        return weights | {"losses.csv": Path("build/losses.csv").read_bytes()}


@pytest.fixture
def signal_at(place, monkeypatch):
    """Sends a signal at a step of the trainings in a block."""

    @contextlib.contextmanager
    def send(step, number=signal.SIGTERM):
        def train(*arguments):
            for event in trained(*arguments):
                if event.step == step:
                    os.kill(os.getpid(), number)
                yield event

        trained = loop.train
        with monkeypatch.context() as patch:
            patch.setattr(loop, "train", train)
            yield

    return send


@pytest.fixture
def interrupt(train, signal_at):
    """Trains up to a signal at the given step, and gives the message."""

    def run(step, changes=None, number=signal.SIGTERM):
        with signal_at(step, number), pytest.raises(Interrupted) as interruption:
            train(changes)
        return str(interruption.value)

    return run


@pytest.fixture
def not_finite_at(monkeypatch):
    """Makes the loss of a step infinite in the trainings in a block."""

    @contextlib.contextmanager
    def spoil(step):
        def losses(*arguments):
            called.append(True)
            return computed(*arguments) * (float("inf") if len(called) == step else 1.0)

        called, computed = [], GaussianDiffusion.losses
        with monkeypatch.context() as patch:
            patch.setattr(GaussianDiffusion, "losses", losses)
            yield

    return spoil


@pytest.fixture
def steps_kept():
    """Lists the steps of all checkpoints."""
    return lambda: [int(path.stem[5:]) for path in sorted(Path("build/checkpoints").glob("*/step_*.safetensors"))]
