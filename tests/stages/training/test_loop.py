"""Checkpoints are complete wherever something relies on them, and none holds a step that is not finite."""

from pathlib import Path

import pytest
import torch

from contract.errors import StageError
from ddpm.checkpoint import load_checkpoint, save_file
from stages.training import loop
from stages.training.evaluation import TrainingEvaluation
from stages.training.experiment import prepare_experiment

MODEL, LOSSES = Path("build/model"), Path("build/losses.csv")


def test_an_interruptions_checkpoint_is_complete_before_a_process_leaves(
    interrupt, make_params, slow_disk, steps_kept, monkeypatch
):
    kept = []
    monkeypatch.setattr(loop, "wait_for_all", lambda: kept.append(steps_kept()))
    interrupt(3)
    assert kept == [[2, 3]]
    experiment = prepare_experiment(make_params().train)
    load_checkpoint(experiment.folder / "step_000000003.safetensors", experiment.state, experiment.identity)


def test_an_evaluation_begins_when_its_checkpoint_is_complete(
    place, make_params, notes, slow_disk, steps_kept, monkeypatch
):
    def add(evaluation, step):
        experiment.recording.evaluations.append({"step": step})
        kept.append((step, steps_kept()[-1]))

    experiment, kept = prepare_experiment(make_params({"train.evaluate_every": 3}).train), []
    monkeypatch.setattr(TrainingEvaluation, "add", add)
    loop.learn(experiment, notes)
    assert kept == [(3, 3), (6, 6)] and steps_kept() == [4, 6]


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


@pytest.mark.parametrize(
    "watching",
    [
        {"train.log_every": 1},
        {"train.log_every": 6, "train.sample_every": 6},  # the checkpoint of step 6 is the first that could notice
        {"train.log_every": 6, "train.sample_every": 5},
    ],
)
def test_a_loss_that_is_not_finite_ends_a_training(train, uninterrupted, not_finite_at, steps_kept, watching):
    with not_finite_at(5), pytest.raises(StageError) as error:
        train(watching)
    (folder,) = Path("build/checkpoints").iterdir()
    for words in ("of step 5 is not finite", "rate of 0.001", f"{folder}/step_000000004.", "train.gradient_clip"):
        assert words in str(error.value)
    assert steps_kept() == [2, 4] and not MODEL.exists() and not LOSSES.exists()
    # If it was an accident, such as of the machine, the training goes on.
    assert train() | {"losses.csv": b""} == uninterrupted | {"losses.csv": b""}


def test_the_last_good_checkpoint_is_named_while_it_is_written(train, not_finite_at, slow_disk):
    with not_finite_at(3), pytest.raises(StageError, match=r"last good checkpoint is .*/step_000000002\."):
        train({"train.log_every": 1})


@pytest.mark.parametrize("changes", [{}, {"train.checkpoint_every": 100, "train.log_every": 1}])
def test_if_the_first_loss_is_not_finite_no_checkpoint_is_named(train, not_finite_at, steps_kept, changes):
    with not_finite_at(1), pytest.raises(StageError, match=r"of step 1 .* no checkpoint was written before it"):
        train(changes)
    assert steps_kept() == []


def test_weights_that_run_away_end_the_training(place, make_params, notes, steps_kept):
    experiment = prepare_experiment(make_params({"train.learning_rate": 1.0, "train.gradient_clip": None}).train)
    with torch.no_grad():
        for parameter in experiment.state.model.parameters():
            parameter.mul_(1e30)
    with pytest.raises(StageError, match=r"is not finite"):
        loop.learn(experiment, notes)
    assert steps_kept() == []


def test_an_interruption_keeps_no_step_that_is_not_finite(train, signal_at, not_finite_at, steps_kept):
    # A signal just after the step that went wrong, at which nothing else was due.
    with signal_at(5), not_finite_at(5), pytest.raises(StageError, match="of step 5 is not finite"):
        train()
    assert steps_kept() == [2, 4]
