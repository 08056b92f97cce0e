"""A training that goes on where it was stopped equals one that was not, and is never confused with another."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

CHECKPOINTS, MODEL, LOSSES = Path("build/checkpoints"), Path("build/model"), Path("build/losses.csv")
CONSTANT = {"train.rate_schedule": "constant"}
CLASSES = {"train.class_conditional": True, "train.label_dropout": 0.3}
AVERAGES = {"train.extra_ema_decays": [0.5, 0.99], "train.ema_warmup": False}


@pytest.mark.parametrize("stops", [[3], [1, 2, 5]])
def test_a_resumed_training_equals_an_uninterrupted_one(interrupt, train, uninterrupted, stops):
    # Stops between two logged steps, between two checkpoints, and at both; the network has dropout.
    for step in stops:
        interrupt(step)
    assert train() == uninterrupted


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (CLASSES, ["averaged", "raw"]),
        (AVERAGES, ["averaged", "averaged_0.5", "averaged_0.99", "raw"]),
        (CLASSES | AVERAGES, ["averaged", "averaged_0.5", "averaged_0.99", "raw"]),
    ],
)
def test_labels_and_further_averages_are_resumed_to_the_bit(interrupt, train, changes, names):
    for step in (3, 5):
        interrupt(step, changes)
    resumed = train(changes)
    assert set(resumed) == {*(f"{name}.safetensors" for name in names), "losses.csv"}
    assert len(set(resumed.values())) == len(resumed)
    shutil.rmtree(CHECKPOINTS)
    assert train(changes) == resumed


def test_a_finished_training_is_published_again_without_a_step(train, capsys):
    # As when DVC has deleted the outputs of a stage that failed after its training.
    before = train({"train.log_every": 4})
    for path in [*MODEL.iterdir(), LOSSES]:
        path.unlink()
    assert train({"train.log_every": 4}) == before
    assert "nothing is left to train" in capsys.readouterr().out


@pytest.mark.parametrize("num_damaged", [1, 2])
def test_damaged_checkpoints_are_passed_over(interrupt, train, uninterrupted, steps_kept, capsys, num_damaged):
    interrupt(5)
    assert steps_kept() == [4, 5]
    newest, older = sorted(CHECKPOINTS.glob("*/step_*.safetensors"), reverse=True)
    for path in (newest, older)[:num_damaged]:
        path.write_bytes(path.read_bytes()[:-100])
    assert train() == uninterrupted
    printed = capsys.readouterr().out
    assert f"{newest} is damaged" in printed
    assert (f"going on from {older}" in printed) is ("going on from" in printed) is (num_damaged == 1)


@pytest.mark.parametrize(
    ("is_resumed", "every", "logged"), [(False, 1, [1, 2, 3, 4, 5, 6]), (False, 100, [6]), (True, 1, [2, 4, 5, 6])]
)
def test_watching_more_or_less_closely_gives_the_same_weights(
    interrupt, train, uninterrupted, is_resumed, every, logged
):
    if is_resumed:
        interrupt(3)
    names = ("log_every", "sample_every", "checkpoint_every")
    watched = train({f"train.{name}": every for name in names} | {"train.num_grid_images": 9})
    assert watched | {"losses.csv": b""} == uninterrupted | {"losses.csv": b""}
    assert list(pd.read_csv(LOSSES)["step"]) == logged


def test_the_newest_checkpoints_and_milestones_are_kept(train, steps_kept):
    train({"train.checkpoint_every": 1, "train.keep_checkpoints": 2, "train.keep_checkpoints_every": 3})
    assert steps_kept() == [3, 5, 6]


@pytest.mark.parametrize(("num_steps", "log_every"), [(4, 2), (5, 3), (3, 10)])
def test_with_a_constant_rate_a_finished_training_goes_further(train, capsys, num_steps, log_every):
    # If the first end lies between two logged steps, its table ends with a row that the longer training does not have.
    changes = CONSTANT | {"train.log_every": log_every}
    short = train(changes | {"train.num_steps": num_steps})
    assert list(pd.read_csv(LOSSES)["step"])[-1] == num_steps
    capsys.readouterr()
    longer = train(changes | {"train.num_steps": 8})
    assert f"step_{num_steps:09d}.safetensors" in capsys.readouterr().out.split("going on from")[1]
    assert len(list(CHECKPOINTS.iterdir())) == 1
    shutil.rmtree(CHECKPOINTS)
    assert train(changes | {"train.num_steps": 8}) == longer != short


def test_with_a_constant_rate_fewer_steps_do_not_publish_more(train):
    short = train(CONSTANT | {"train.num_steps": 4})
    train(CONSTANT | {"train.num_steps": 6, "train.keep_checkpoints": 9})
    assert train(CONSTANT | {"train.num_steps": 4}) == short


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_says_which_and_where_and_keeps_the_step(interrupt, number):
    message = interrupt(3, number=number)
    (folder,) = CHECKPOINTS.iterdir()
    path = folder / "step_000000003.safetensors"
    assert f"{number.name} at step 3" in message and str(path) in message
    assert path.is_file() and not MODEL.exists() and not LOSSES.exists()


def test_a_signal_at_the_last_step_lets_it_finish(disturb, train, uninterrupted):
    assert disturb(6, lambda _: os.kill(os.getpid(), signal.SIGTERM)) == (0, "")
    assert (MODEL / "raw.safetensors").is_file() and train() == uninterrupted


def test_a_resumed_training_goes_on_in_its_run(interrupt, train, recording_run):
    interrupt(3)
    train()
    assert recording_run == [("train", None), ("train", "the run")]
    assert json.loads((MODEL / "run.json").read_text()) == {"mlflow_run_id": "the run", "mlflow_experiment_id": "7"}


def change_a_pixel():
    images = np.load("build/dataset/images.npy")
    images[0, 0, 0, 0] ^= 1
    np.save("build/dataset/images.npy", images)


def replace_in_index(old, new):
    index = Path("build/dataset/index.csv")
    index.write_text(index.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        (change_a_pixel, {}, {}),
        (lambda: replace_in_index("train", "valid"), {}, {}),  # the same array, split in another way
        (lambda: replace_in_index("1,8,rose,train", "1,3,01,train"), CLASSES, CLASSES),
        (lambda: None, {"train.num_steps": 4}, {}),  # its rate falls to zero
    ],
    ids=["a pixel", "a split", "a label", "more steps"],
)
def test_another_training_is_not_resumed(interrupt, train, capsys, change, before, after):
    interrupt(3, before)
    change()
    train(after)
    assert "going on from" not in capsys.readouterr().out and len(list(CHECKPOINTS.iterdir())) == 2
