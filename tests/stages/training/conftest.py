"""Small trainings: to their end, or disturbed in one of their steps."""

import contextlib
import itertools
import os
import signal
from pathlib import Path

import pytest

from ddpm.diffusion import GaussianDiffusion
from stages.runtime.runner import run_stage
from stages.train import main
from tests.stages import processes


@pytest.fixture
def place(folder, dataset, signal_handlers):
    """A folder with the prepared dataset."""
    dataset()
    return folder


def read_results():
    """Return the bytes of all weights, and of the table of losses."""
    paths = [*Path("build/model").glob("*.safetensors"), Path("build/losses.csv")]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture
def train(place, make_params):
    """Trains, and gives the results."""

    def run(changes=None):
        main(make_params(changes))
        return read_results()

    return run


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, make_params, dataset):
    """The results of the small experiment."""
    with contextlib.chdir(tmp_path_factory.mktemp("uninterrupted")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_TRACKING", "off")
        dataset()
        main(make_params())
        return read_results()


@pytest.fixture
def disturb(place, write_params, steps_kept, monkeypatch, capsys):
    """Runs the stage as DVC does, calls `action` with the network in one step; gives exit status and why it ended."""

    def run(step, action, changes=None):
        def losses(diffusion, network, *others):
            factor = action(network) if next(steps) == step else None
            return computed(diffusion, network, *others) * (factor or 1.0)

        steps, computed = itertools.count(1 + max(steps_kept(), default=0)), GaussianDiffusion.losses
        write_params(changes)
        status = 0
        with monkeypatch.context() as patch:
            patch.setattr(GaussianDiffusion, "losses", losses)
            try:
                run_stage("train", main)
            except SystemExit as end:
                status = end.code
        printed = capsys.readouterr()
        lines = (printed.out + printed.err).splitlines()
        return status, "".join(line for line in lines if line.startswith(("train: warning: ", "train: error: ")))

    return run


@pytest.fixture
def interrupt(disturb):
    """Trains up to a signal in the given step, and gives the message."""

    def run(step, changes=None, number=signal.SIGTERM):
        status, line = disturb(step, lambda _: os.kill(os.getpid(), number), changes)
        assert status == 75
        return line

    return run


@pytest.fixture
def spoil(disturb):
    """Makes the loss of a step infinite, and gives the message."""

    def run(step, changes=None, action=lambda _: float("inf")):
        status, line = disturb(step, action, changes)
        assert status == 1
        return line

    return run


@pytest.fixture
def steps_kept():
    """Lists the steps of all checkpoints."""
    return lambda: processes.steps_kept(Path())
