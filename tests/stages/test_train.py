"""A training that goes on where it was stopped equals one that was not, and is never confused with another."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import stages.train as module
from ddpm import training, training_state
from ddpm.checkpoint import load_model
from ddpm.diffusion import GaussianDiffusion
from ddpm.training import draw_batch
from stages.runtime.interruption import EXIT_INTERRUPTED
from stages.runtime.runner import EXIT_ERROR, run_stage
from tracking.runs import _closing

CHECKPOINTS, MODEL, LOSSES = Path("build/checkpoints"), Path("build/model"), Path("build/losses.csv")
CONSTANT = {"train.rate_schedule": "constant"}
QUARTILES = [f"loss_t_quartile_{number}" for number in (1, 2, 3, 4)]


@pytest.fixture
def place(folder, dataset, signal_handlers):
    """A folder with the prepared dataset."""
    dataset()
    return folder


@pytest.fixture
def train(place, make_params):
    """Trains and gives what the training leaves."""

    def run(changes=None):
        module.main(make_params(changes))
        return results()

    return run


@pytest.fixture
def ended(capsys):
    """Runs the stage as DVC does, to an end before its last step, and gives the exit status and the line of error."""

    def run():
        with pytest.raises(SystemExit) as caught:
            run_stage("train", module.main)
        *_, line = capsys.readouterr().err.splitlines()
        return caught.value.code, line

    return run


@pytest.fixture
def interrupted(place, write_params, monkeypatch, ended):
    """Runs the stage as DVC does, with a signal at the given step, and gives its one line of error."""

    def run(step, number=signal.SIGTERM, changes=None):
        def signalling(*arguments):
            for event in learnt(*arguments):
                if event.step == step:
                    os.kill(os.getpid(), number)
                yield event

        learnt = module.train
        write_params(changes)
        with monkeypatch.context() as patch:
            patch.setattr(module, "train", signalling)
            status, line = ended()
        assert status == EXIT_INTERRUPTED == 75
        return line

    return run


@pytest.fixture
def spoilt(place, write_params, monkeypatch, ended):
    """Runs the stage as DVC does, with a loss that is no number at the given step, and gives its one line of error."""

    def run(step, changes=None):
        def losses(*arguments):
            called.append(True)
            factor = float("nan") if len(called) == step else 1.0
            return computed(*arguments) * factor

        called, computed = [], GaussianDiffusion.losses
        write_params(changes)
        with monkeypatch.context() as patch:
            patch.setattr(GaussianDiffusion, "losses", losses)
            status, line = ended()
        assert status == EXIT_ERROR == 1
        return line

    return run


def results():
    """The bytes of all weights, and of the table of losses."""
    return {path.name: path.read_bytes() for path in [*MODEL.glob("*.safetensors"), LOSSES]}


def steps_kept():
    return [int(path.stem.removeprefix("step_")) for path in sorted(CHECKPOINTS.glob("*/step_*.safetensors"))]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, make_params, dataset):
    """What the small experiment leaves where nothing stops it."""
    root = tmp_path_factory.mktemp("uninterrupted")
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_TRACKING", "off")
        dataset()
        module.main(make_params())
        return results()


@pytest.mark.parametrize("stops", [[3], [1, 2, 5]])
def test_a_resumed_training_equals_an_uninterrupted_one(interrupted, train, uninterrupted, stops):
    # Stops between two logged steps, between two checkpoints, and at both; the network has dropout.
    for step in stops:
        interrupted(step)
    assert train() == uninterrupted


def test_the_table_of_losses_has_a_row_at_each_logged_step(train):
    train({"train.log_every": 4})
    table = pd.read_csv(LOSSES)
    assert list(table.columns) == ["step", "loss", "learning_rate", "num_images_seen", *QUARTILES]
    assert list(table["step"]) == [4, 6]  # the last step among them
    assert list(table["num_images_seen"]) == [16, 24]
    assert table["learning_rate"].gt(0.0).all()


def test_a_logged_loss_is_the_mean_since_the_one_before(train):
    train({"train.log_every": 1})
    each = pd.read_csv(LOSSES)["loss"]
    shutil.rmtree(CHECKPOINTS)
    train({"train.log_every": 4})
    assert pd.read_csv(LOSSES)["loss"].tolist() == pytest.approx([each[:4].mean(), each[4:].mean()], rel=1e-5)


def test_losses_by_quartile_of_t_are_the_means_of_the_images_of_that_quartile(train, make_params):
    # One step of the untrained network, without dropout, by hand.
    changes = {"train.num_steps": 1, "train.warmup_steps": 1, "train.batch_size": 20, "train.unet.dropout": 0.0}
    experiment = module.prepare(make_params(changes).train)
    batch = draw_batch(experiment.images, 0, seed=3, num_timesteps=20)
    with torch.no_grad():
        losses = experiment.diffusion.build().losses(experiment.state.model, batch.x_0, batch.t, batch.eps, "mse")
    train(changes)
    (row,) = pd.read_csv(LOSSES).to_dict("records")
    expected = [float(losses[(batch.t >= low) & (batch.t < low + 5)].mean()) for low in (0, 5, 10, 15)]
    assert [row[name] for name in QUARTILES] == pytest.approx(expected, rel=1e-5)
    assert row["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_losses_by_quartile_weigh_each_image_since_the_last_row_alike(train, make_params):
    train({"train.log_every": 1})
    each = pd.read_csv(LOSSES)[QUARTILES].to_numpy()
    images = module.prepare(make_params().train).images
    drawn = [draw_batch(images, step, seed=3, num_timesteps=20).t // 5 for step in range(6)]
    counts = np.array([np.bincount(quartiles, minlength=4) for quartiles in drawn])
    assert (np.isnan(each) == (counts == 0)).all() and (counts == 0).any()  # no image, no figure
    shutil.rmtree(CHECKPOINTS)
    train({"train.log_every": 6})
    expected = np.nansum(each * counts, axis=0) / counts.sum(axis=0)
    assert pd.read_csv(LOSSES).loc[0, QUARTILES].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_model_can_be_loaded_and_names_its_run(train):
    train()
    assert json.loads((MODEL / "run.json").read_text()) == {"mlflow_run_id": "", "mlflow_experiment_id": ""}
    model = load_model(MODEL)
    assert model.image_size == 16 and model.diffusion.num_timesteps == 20
    raw, averaged = load_model(MODEL, "raw").unet.state_dict(), model.unet.state_dict()
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


def test_a_finished_training_is_published_again_without_a_step(train, monkeypatch, capsys):
    # As when DVC has deleted the outputs of a stage that failed after its training.
    before = train()
    for path in [*MODEL.iterdir(), LOSSES]:
        path.unlink()
    monkeypatch.setattr(module, "save", lambda *_: pytest.fail("a step was taken"))
    assert train() == before
    assert "nothing is left to train" in capsys.readouterr().out


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(interrupted, train, uninterrupted, capsys):
    interrupted(5)
    assert steps_kept() == [4, 5]
    *_, newest = sorted(CHECKPOINTS.glob("*/step_*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    assert train() == uninterrupted
    printed = capsys.readouterr().out
    assert f"{newest} is damaged" in printed and "; going back to the one before it" in printed
    assert "step_000000004.safetensors" in printed.split("going on from")[1]


def test_without_a_usable_checkpoint_it_starts_anew(interrupted, train, uninterrupted, capsys):
    interrupted(5)
    for path in CHECKPOINTS.glob("*/step_*.safetensors"):
        path.write_bytes(b"")
    assert train() == uninterrupted
    assert "going on from" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "watching",
    [
        {"train.log_every": 1, "train.sample_every": 1, "train.checkpoint_every": 1},
        {"train.log_every": 5, "train.sample_every": 100, "train.checkpoint_every": 100, "train.num_grid_images": 9},
    ],
)
def test_watching_more_or_less_closely_gives_the_same_weights(train, uninterrupted, watching):
    watched = train(watching)
    assert {**watched, "losses.csv": b""} == {**uninterrupted, "losses.csv": b""}


def test_a_resumed_training_may_be_watched_otherwise(interrupted, train, uninterrupted):
    interrupted(3)
    watched = train({"train.log_every": 1, "train.checkpoint_every": 5, "train.keep_checkpoints": 1})
    assert {**watched, "losses.csv": b""} == {**uninterrupted, "losses.csv": b""}
    assert list(pd.read_csv(LOSSES)["step"]) == [2, 4, 5, 6]


def test_the_newest_checkpoints_are_kept(train):
    train({"train.checkpoint_every": 1, "train.keep_checkpoints": 3})
    assert steps_kept() == [4, 5, 6]


def test_checkpoints_at_multiples_of_a_number_are_kept_too(train):
    train({"train.checkpoint_every": 1, "train.keep_checkpoints": 1, "train.keep_checkpoints_every": 2})
    assert steps_kept() == [2, 4, 6]


@pytest.mark.parametrize(("num_steps", "log_every"), [(4, 2), (5, 3), (3, 10)])
def test_with_a_constant_rate_a_finished_training_is_carried_further(train, capsys, num_steps, log_every):
    # Where the first end lies between two logged steps, the table of its losses ends with a row that the longer
    # training does not have.
    changes = CONSTANT | {"train.log_every": log_every}
    short = train(changes | {"train.num_steps": num_steps})
    assert list(pd.read_csv(LOSSES)["step"])[-1] == num_steps
    capsys.readouterr()
    carried = train(changes | {"train.num_steps": 8})
    assert f"step_{num_steps:09d}.safetensors" in capsys.readouterr().out.split("going on from")[1]
    assert len(list(CHECKPOINTS.iterdir())) == 1
    shutil.rmtree(CHECKPOINTS)
    assert train(changes | {"train.num_steps": 8}) == carried != short
    assert "going on from" not in capsys.readouterr().out


def test_further_averages_are_published_and_resumed(interrupted, train):
    changes = {"train.extra_ema_decays": [0.5, 0.99], "train.ema_warmup": False}
    interrupted(3, changes=changes)
    resumed = train(changes)
    assert set(resumed) == {
        "averaged.safetensors", "averaged_0.5.safetensors", "averaged_0.99.safetensors", "raw.safetensors",
        "losses.csv",
    }  # fmt: skip
    assert len(set(resumed.values())) == 5
    shutil.rmtree(CHECKPOINTS)
    assert train(changes) == resumed


def test_a_further_average_is_what_the_first_would_be_by_its_decay(train):
    further = train({"train.extra_ema_decays": [0.5], "train.ema_warmup": False})
    assert (
        train({"train.ema_decay": 0.5, "train.ema_warmup": False})["averaged.safetensors"]
        == further["averaged_0.5.safetensors"]
    )
    assert further["averaged_0.5.safetensors"] != further["averaged.safetensors"]


def test_with_a_constant_rate_fewer_steps_do_not_publish_more(train):
    short = train(CONSTANT | {"train.num_steps": 4})
    train(CONSTANT | {"train.num_steps": 6, "train.keep_checkpoints": 9})
    assert train(CONSTANT | {"train.num_steps": 4}) == short


def test_with_a_falling_rate_more_steps_are_another_training(train, capsys):
    train({"train.num_steps": 4})
    train({"train.num_steps": 6})
    assert "going on from" not in capsys.readouterr().out
    assert len(list(CHECKPOINTS.iterdir())) == 2


@pytest.mark.parametrize(
    "watching",
    [
        {"train.log_every": 1},
        {"train.log_every": 6, "train.sample_every": 6},  # the checkpoint of step 6 is the first that could notice
        {"train.log_every": 6, "train.sample_every": 5},
    ],
)
def test_a_loss_that_is_not_finite_ends_the_training_before_another_checkpoint(spoilt, train, uninterrupted, watching):
    line = spoilt(5, watching)
    (folder,) = CHECKPOINTS.iterdir()
    assert line == (
        "train: error: the loss or gradient of step 5 is not finite, at a learning rate of 0.001; the last good "
        f"checkpoint is {folder}/step_000000004.safetensors; lower train.learning_rate, raise train.warmup_steps, or "
        "set train.gradient_clip"
    )
    assert steps_kept() == [2, 4] and not MODEL.exists() and not LOSSES.exists()
    # Where it was an accident, such as of the machine, the training goes on.
    went_on = train()
    assert {**went_on, "losses.csv": b""} == {**uninterrupted, "losses.csv": b""}


def test_where_the_first_loss_is_not_finite_no_checkpoint_is_named(spoilt):
    assert "of step 1 is not finite, at a learning rate of 0.001; no checkpoint was written before it" in spoilt(1)
    assert steps_kept() == []


def test_weights_that_run_away_end_the_training(place, write_params, monkeypatch, capsys):
    write_params({"train.checkpoint_every": 100, "train.log_every": 1})
    for user in (training, training_state):
        monkeypatch.setattr(user, "learning_rate_at", lambda *_: 1e30)
    with pytest.raises(SystemExit) as caught:
        run_stage("train", module.main)
    assert caught.value.code == 1
    assert "is not finite, at a learning rate of 1e+30; no checkpoint" in capsys.readouterr().err
    assert steps_kept() == [] and not MODEL.exists()


def test_an_interruption_keeps_no_step_that_is_not_finite(spoilt, monkeypatch):
    # A signal just after the step that went wrong, at which nothing else was due.
    def signalling(*arguments):
        for event in learnt(*arguments):
            if event.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield event

    learnt = module.train
    monkeypatch.setattr(module, "train", signalling)
    assert "of step 5 is not finite" in spoilt(5)
    assert steps_kept() == [2, 4]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_says_which_and_where_and_keeps_the_step(interrupted, number):
    line = interrupted(3, number)
    (folder,) = CHECKPOINTS.iterdir()
    path = folder / "step_000000003.safetensors"
    assert line == f"train: warning: {number.name} at step 3, kept in {path}; run it again to go on"
    assert path.is_file() and not MODEL.exists() and not LOSSES.exists()


def test_a_signal_at_the_last_step_lets_it_finish(place, write_params, monkeypatch, uninterrupted):
    def signalling(*arguments):
        for event in learnt(*arguments):
            if event.step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            yield event

    learnt = module.train
    monkeypatch.setattr(module, "train", signalling)
    write_params()
    run_stage("train", module.main)
    assert results() == uninterrupted


def test_a_second_signal_does_not_break_the_leaving(interrupted, monkeypatch, notes):
    # An impatient hand while the tracker sends what still waits.
    def slow_close(status):
        os.kill(os.getpid(), signal.SIGINT)
        notes.ended.append(status)

    monkeypatch.setattr(notes, "close", slow_close)
    monkeypatch.setattr(module, "opened_run", tracked(notes))
    assert "SIGTERM at step 3" in interrupted(3)
    assert notes.ended == ["KILLED"]


def tracked(tracker):
    """A stand-in for an MLflow run, ended as a real one is."""
    return lambda *_: _closing(tracker)


def test_losses_and_grids_go_to_the_tracker(train, monkeypatch, notes):
    monkeypatch.setattr(module, "opened_run", tracked(notes))
    train()
    assert list(notes.metrics) == [2, 4, 6]
    always = {"loss", "learning_rate", "num_images_seen", "images_per_second", "gradient_norm"}
    assert always < set(notes.metrics[2]) <= always | set(QUARTILES)
    assert notes.metrics[2]["gradient_norm"] > 0.0
    assert notes.metrics[2]["loss"] == pytest.approx(pd.read_csv(LOSSES)["loss"][0])
    assert [(key, step) for key, step, _ in notes.images] == [("samples", 0), ("samples", 4), ("samples", 6)]
    # Four images of 16 pixels, two by two, two pixels apart.
    assert all(image.shape == (38, 38, 3) for _, _, image in notes.images)
    assert notes.files == [("build/losses.csv", "training")] and notes.ended == ["FINISHED"]


def test_a_resumed_training_goes_on_in_its_run(interrupted, train, monkeypatch, notes):
    asked = []

    def opened(params, run_id=None):
        asked.append(run_id)
        return _closing(notes)

    monkeypatch.setattr(module, "opened_run", opened)
    interrupted(3)
    train()
    assert asked == [None, "the run"] and notes.ended == ["KILLED", "FINISHED"]
    assert json.loads((MODEL / "run.json").read_text()) == {"mlflow_run_id": "the run", "mlflow_experiment_id": "7"}


@pytest.mark.parametrize("what", ["a pixel", "a split"])
def test_the_data_of_another_preprocessing_is_not_resumed(interrupted, train, capsys, what):
    interrupted(3)
    if what == "a pixel":
        images = np.load("build/dataset/images.npy")
        images[0, 0, 0, 0] ^= 1
        np.save("build/dataset/images.npy", images)
    else:  # the same array, split in another way
        index = Path("build/dataset/index.csv")
        index.write_text(index.read_text().replace("train", "valid", 1))
    train()
    assert "going on from" not in capsys.readouterr().out


def test_only_the_wanted_splits_are_learnt_from(train, make_params):
    assert len(module.prepare(make_params().train).images) == 20
    assert len(module.prepare(make_params({"train.splits": ["train", "valid", "test"]}).train).images) == 35
    assert train({"train.splits": ["valid"]})["raw.safetensors"] != train()["raw.safetensors"]
