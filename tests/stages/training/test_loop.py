"""Checkpoints are complete wherever something relies on them, and none holds a step that is not finite."""

import os
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from contract.errors import StageError
from ddpm.checkpoint import save_file
from ddpm.images import to_pixels
from ddpm.metrics import KernelDistance
from stages.training import loop

MODEL, LOSSES = Path("build/model"), Path("build/losses.csv")


def test_an_interruptions_checkpoint_is_complete_before_a_process_leaves(
    interrupt, train, uninterrupted, slow_disk, steps_kept, monkeypatch
):
    kept = []
    monkeypatch.setattr(loop, "wait_for_all", lambda: kept.append(steps_kept()))
    interrupt(3)
    assert kept == [[2, 3]]
    assert train() == uninterrupted


def test_an_evaluation_begins_when_its_checkpoint_is_complete(train, mean_colours, slow_disk, steps_kept, monkeypatch):
    def compare(*_, **__):
        kept.append(steps_kept())
        return KernelDistance(0.5, 0.0, 0.0, 1.0)

    kept = []
    monkeypatch.setattr("ddpm.metrics.kernel_distance", compare)
    train({"train.evaluate_every": 3})
    assert kept == [[2, 3], [4, 6]]


@pytest.mark.parametrize(("full_at", "kept"), [(2, []), (6, [2, 4])])
def test_a_full_disk_ends_a_training_and_publishes_nothing(train, steps_kept, monkeypatch, full_at, kept):
    def save(tensors, file, metadata):
        if metadata["step"] == str(full_at):
            raise OSError("no space left on device")
        save_file(tensors, file, metadata)

    monkeypatch.setattr("ddpm.checkpoint.save_file", save)
    with pytest.raises(OSError, match="no space left on device"):
        train()
    assert steps_kept() == kept and not MODEL.exists()


def test_a_full_disk_is_one_line_that_names_the_file(disturb):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        status, line = disturb(1, lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, before[1])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (folder,) = Path("build/checkpoints").iterdir()
    assert status == 1 and line == (
        f"train: error: {folder}/step_000000002.safetensors: File too large; have the limit of file sizes raised, then "
        "run it again"
    )


@pytest.mark.parametrize(
    "watching",
    [
        {"train.log_every": 1},
        {"train.log_every": 6, "train.sample_every": 6},  # the checkpoint of step 6 is the first that could notice
        {"train.log_every": 6, "train.sample_every": 5},
    ],
)
def test_a_loss_that_is_not_finite_ends_a_training(train, uninterrupted, spoil, steps_kept, watching):
    line = spoil(5, watching)
    (folder,) = Path("build/checkpoints").iterdir()
    assert line.startswith("train: error: the loss or gradient of step 5 is not finite, at a learning rate of 0.001")
    assert f"the last good checkpoint is {folder}/step_000000004.safetensors" in line and "train.gradient_clip" in line
    assert steps_kept() == [2, 4] and not MODEL.exists() and not LOSSES.exists()
    # If it was an accident, such as of the machine, the training goes on.
    assert train() | {"losses.csv": b""} == uninterrupted | {"losses.csv": b""}


def test_the_last_good_checkpoint_is_named_while_it_is_written(spoil, slow_disk):
    assert "/step_000000002." in spoil(3, {"train.log_every": 1}).split("last good checkpoint is")[1]


def test_without_a_good_checkpoint_the_error_says_so(spoil, steps_kept):
    line = spoil(1)
    assert "of step 1 is not finite" in line and "no checkpoint was written before it" in line
    assert steps_kept() == [] and not MODEL.exists()


def test_an_interruption_keeps_no_step_that_is_not_finite(spoil, steps_kept):
    # Both in a step at which nothing else is due.
    line = spoil(5, action=lambda _: os.kill(os.getpid(), signal.SIGTERM) or float("inf"))
    assert "of step 5 is not finite" in line and steps_kept() == [2, 4]


def test_weights_that_draw_no_numbers_are_named_where_their_losses_were_finite(tmp_path):
    experiment = SimpleNamespace(folder=tmp_path, state=SimpleNamespace(step=3))
    message = "^an image drawn after step 3 is not finite; no checkpoint was written before it; lower train"
    with pytest.raises(StageError, match=message), loop.explain_not_finite(experiment):
        to_pixels(torch.full((1, 3, 8, 8), float("nan")))
