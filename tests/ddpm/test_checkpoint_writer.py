"""Checkpoints beside the training: of the step at which they were asked for, one at a time, and no failure lost."""

import dataclasses
import threading
from contextlib import nullcontext

import pytest
import torch

from ddpm import TrainingState, UNet
from ddpm.checkpoint import list_checkpoints, load_checkpoint, step_of
from ddpm.checkpoint_writer import CheckpointWriter
from tests.ddpm.small_networks import TINY
from tests.ddpm.small_training import SHORT, assert_same_bits, snapshot, start, train_to_the_end

EXPERIMENT = {"code": "a1b2"}
LONGER = dataclasses.replace(SHORT, num_steps=6, compilation="off")


@pytest.fixture
def writer(tmp_path):
    return CheckpointWriter(tmp_path, EXPERIMENT, keep=1)


def steps_kept(folder):
    return [step_of(path) for path in list_checkpoints(folder)]


def save_at(writer, state, step):
    state.step = step
    writer.save(state, {})


def run_out_of_memory(patch):
    def clone(tensor, **options):
        copied.append(True)
        if len(copied) == 3:
            raise torch.OutOfMemoryError
        return tensor.contiguous(**options)

    copied = []
    patch.setattr(torch.Tensor, "clone", clone)


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize("room", ["enough", "little", "less than promised"])
def test_a_checkpoint_is_of_its_step_while_the_training_goes_on(tmp_path, writer, slow_disk, monkeypatch, device, room):
    states = [TrainingState.start(UNet(TINY).to(device), LONGER) for _ in range(2)]
    state = train_to_the_end(states[0], dataclasses.replace(LONGER, num_steps=3))
    notes = {"losses": [0.5, 0.25]}
    with writer:
        before = snapshot(state)
        with monkeypatch.context() as patch:
            if room == "little":
                patch.setattr("ddpm.checkpoint_writer.fits_on", lambda *_: False)
            if room == "less than promised":
                run_out_of_memory(patch)
            writer.save(state, notes)
        notes["losses"].append(0.125)
        train_to_the_end(state, LONGER)
        assert steps_kept(tmp_path) == []
    after = snapshot(state)
    assert all((after[name] != tensor).any() for name, tensor in before.items() if tensor.is_floating_point())
    (path,) = list_checkpoints(tmp_path)
    assert load_checkpoint(path, states[1], EXPERIMENT) == {"losses": [0.5, 0.25]}
    assert_same_bits(before, snapshot(states[1]))


def test_one_checkpoint_is_written_at_a_time(tmp_path, writer, slow_disk):
    state = start(SHORT)
    with writer:
        save_at(writer, state, 1)
        assert steps_kept(tmp_path) == []
        save_at(writer, state, 2)
        # The first has its name, and goes only when the second has.
        assert steps_kept(tmp_path) == [1]
        writer.wait()
        assert steps_kept(tmp_path) == [2]
        writer.wait()  # for nothing
    assert [thread.name for thread in threading.enumerate() if "checkpoint" in thread.name] == []


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_end_waits_for_the_checkpoint_under_way(tmp_path, writer, slow_disk, error):
    with pytest.raises(error) if error else nullcontext(), writer:
        save_at(writer, start(SHORT), 1)
        assert steps_kept(tmp_path) == []
        if error:
            raise error
    assert steps_kept(tmp_path) == [1]


def test_a_failure_is_raised_by_the_wait_and_the_next_checkpoint_may_do(tmp_path, writer, full_disk):
    state = start(SHORT)
    with writer:
        save_at(writer, state, 1)
        with pytest.raises(OSError, match="no space left on device"):
            writer.wait()
        writer.wait()
        save_at(writer, state, 2)
        with pytest.raises(OSError, match="no space left on device"):
            save_at(writer, state, 3)
        assert list(tmp_path.iterdir()) == []
        full_disk()
        save_at(writer, state, 4)
    assert steps_kept(tmp_path) == [4]


def test_a_failure_is_raised_at_the_end(writer, full_disk):
    with pytest.raises(OSError, match="no space left on device"), writer:
        save_at(writer, start(SHORT), 1)


def test_beside_an_error_of_the_training_a_failure_is_a_warning(writer, full_disk):
    def train():
        with writer:
            save_at(writer, start(SHORT), 1)
            raise ValueError("the training's own")

    with (
        pytest.warns(RuntimeWarning, match="could not be written: .*no space left on device"),
        pytest.raises(ValueError, match="the training's own"),
    ):
        train()
