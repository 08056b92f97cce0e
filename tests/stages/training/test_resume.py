"""A training that goes on where it was stopped equals one that was not, and is never confused with another."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file

from tests.stages.training.conftest import read_results

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


def test_a_finished_training_is_taken_up_when_its_edited_code_is_restored(disturb, uninterrupted):
    Path("dvc.yaml").write_text("stages: {train: {deps: [code.py]}}")
    Path("code.py").write_text("a = 1")
    status, line = disturb(6, lambda _: Path("code.py").write_text("a = 2") and None)
    assert status == 1 and line.startswith("train: error: code.py changed while train ran, so nothing is recorded")
    Path("code.py").write_text("a = 1")
    shutil.rmtree(MODEL)
    assert disturb(7, lambda _: pytest.fail("it is trained again")) == (0, "")
    assert read_results() == uninterrupted


def tamper(change):
    """Change what the newest checkpoint says of its experiment, as if an older version of the code had written it."""
    path = max(CHECKPOINTS.glob("*/step_*.safetensors"))
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    experiment = json.loads(metadata["experiment"])
    change(experiment)
    save_file(tensors, path, metadata | {"experiment": json.dumps(experiment)})
    path.parent.rename(path.parent.with_name("0" * 16))


@pytest.mark.parametrize(
    ("change", "changes", "sweep", "differences"),
    [
        (
            None,
            {"train.batch_size": 5, "train.gradient_clip": None, "train.unet.dropout": 0.0},
            "",
            "train.batch_size was 4 and is 5; train.gradient_clip was 1.0 and is null; "
            "train.unet.dropout was 0.1 and is 0.0",
        ),
        (lambda one: one["code"].update({"ddpm.ema": "0"}), {}, "owls", "the code of ddpm.ema"),
        (lambda one: one.update(code="0" * 64), {}, "", "the code"),  # of a version that kept one digest
        (lambda one: one.update(images_md5="0"), {"train.seed": 4}, "", "train.seed was 3 and is 4; the images"),
        (lambda one: one.pop("loss"), {}, "", 'train.loss was absent and is "mse"'),
        # far ones, and what is meant to differ
        (None, {"train.batch_size": 5, "train.seed": 4, "train.unet.dropout": 0.0, "train.ema_decay": 0.8}, "", None),
        (None, {"train.batch_size": 5}, "owls", None),
    ],
)
def test_a_training_that_starts_anew_names_the_near_one_and_what_differs(
    interrupt, monkeypatch, change, changes, sweep, differences
):
    interrupt(3)
    if change:
        tamper(change)
    (path,) = CHECKPOINTS.glob("*/step_000000003.safetensors")
    monkeypatch.setenv("DDPM_SWEEP", sweep)
    said = (
        f"train: warning: starts at step 0; {path} holds step 3 of an interrupted training, which goes on if this is "
        f"as it was: {differences}"
    )
    line = interrupt(4, changes)  # its first step
    assert line.startswith(said + "train: warning: SIGTERM") if differences else "starts at step 0" not in line


def test_the_nearest_interrupted_training_is_named_and_no_finished_one(interrupt, disturb):
    interrupt(3, {"train.seed": 6, "train.batch_size": 5})
    interrupt(6, {"train.batch_size": 5})  # its third step
    finish(disturb, {"train.seed": 5})
    assert "as it was: train.batch_size was 5 and is 4" in disturb(0, None)[1]


def finish(disturb, changes):
    assert disturb(0, None, changes)[0] == 0


def test_checkpoints_of_finished_trainings_go_except_the_last_two(interrupt, disturb, capsys):
    interrupt(5, CONSTANT | {"train.num_steps": 8})
    (interrupted,) = CHECKPOINTS.iterdir()
    finish(disturb, CONSTANT | {"train.num_steps": 2})  # what has gone beyond may go on later
    kept = sorted(interrupted.glob("step_*"))
    finish(disturb, {"train.seed": 11, "train.keep_checkpoints_every": 4})
    (first,) = (folder for folder in CHECKPOINTS.iterdir() if folder != interrupted)
    (first / "notes.txt").touch()
    (CHECKPOINTS / "a person's").mkdir()
    finish(disturb, {"train.seed": 12})
    assert (first / "step_000000006.safetensors").is_file()
    (second,) = (folder for folder in CHECKPOINTS.glob("?" * 16) if folder not in (interrupted, first))
    lock = FileLock(second / "lock")
    with lock:  # in use by another process
        finish(disturb, {"train.seed": 13})
        finish(disturb, {"train.seed": 14})
    assert {path.name for path in first.glob("*.*")} == {"finished.json", "notes.txt", "step_000000004.safetensors"}
    assert len(list(second.glob("step_*"))) == 2
    finish(disturb, {"train.seed": 15})
    assert not list(second.glob("step_*")) and sorted(interrupted.glob("step_*")) == kept and len(kept) == 3
    assert (CHECKPOINTS / "a person's").is_dir()
