"""The checkpoints of a training are written beside it, and waited for where somebody relies on them."""

import os
import signal

import pytest

import stages.train as module
from contract.errors import StageError
from contract.paths import MODEL
from ddpm.checkpoint import list_checkpoints, load_checkpoint, save_file, step_of
from ddpm.diffusion import GaussianDiffusion
from stages.runtime.interruption import Interrupted
from stages.training.evaluation import TrainingEvaluation


@pytest.fixture
def prepare(folder, dataset, make_params, signal_handlers):
    """Makes the experiment before its first step."""
    dataset()
    return lambda changes=None: module.prepare(make_params(changes).train)


def steps_kept(experiment):
    return [step_of(path) for path in list_checkpoints(experiment.folder)]


def test_an_interruptions_checkpoint_is_whole_before_a_process_may_leave(prepare, notes, slow_disk, monkeypatch):
    def signalling(*arguments):
        for event in learnt(*arguments):
            if event.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield event

    experiment, learnt, kept = prepare(), module.train, []
    monkeypatch.setattr(module, "train", signalling)
    monkeypatch.setattr(module, "wait_for_all", lambda: kept.append(steps_kept(experiment)))
    with pytest.raises(Interrupted, match=r"at step 3, kept in .*/step_000000003\.safetensors;"):
        module.learn(experiment, notes)
    assert kept == [[2, 3]]
    *_, newest = list_checkpoints(experiment.folder)
    load_checkpoint(newest, prepare().state, experiment.identity)


def test_the_last_checkpoint_is_whole_when_the_training_ends(prepare, notes, slow_disk):
    experiment = prepare()
    module.learn(experiment, notes)
    assert steps_kept(experiment) == [4, 6]


def test_an_evaluation_begins_when_its_checkpoint_is_whole(prepare, notes, slow_disk, monkeypatch):
    def add(evaluation, step, _):
        evaluation.rows.append({"step": step})
        kept.append((step, steps_kept(experiment)[-1]))

    experiment, kept = prepare({"train.evaluate_every": 3}), []
    monkeypatch.setattr(TrainingEvaluation, "add", add)
    module.learn(experiment, notes)
    assert kept == [(3, 3), (6, 6)]


def test_the_last_good_checkpoint_is_named_though_it_is_under_way(prepare, notes, slow_disk, monkeypatch):
    def losses(*arguments):
        called.append(True)
        return computed(*arguments) * (float("nan") if len(called) == 3 else 1.0)

    called, computed = [], GaussianDiffusion.losses
    monkeypatch.setattr(GaussianDiffusion, "losses", losses)
    with pytest.raises(StageError, match=r"of step 3 is not finite.* last good checkpoint is .*/step_000000002\."):
        module.learn(prepare({"train.log_every": 1}), notes)


@pytest.mark.parametrize(("full_at", "kept"), [(2, []), (6, [2, 4])])
def test_a_training_whose_checkpoint_cannot_be_written_ends_and_publishes_nothing(
    prepare, make_params, monkeypatch, full_at, kept
):
    def save(tensors, file, metadata):
        if metadata["step"] == str(full_at):
            raise OSError("no space left on device")
        save_file(tensors, file, metadata)

    monkeypatch.setattr("ddpm.checkpoint.save_file", save)
    with pytest.raises(OSError, match="no space left on device"):
        module.main(make_params())
    assert steps_kept(prepare()) == kept and not MODEL.exists()
