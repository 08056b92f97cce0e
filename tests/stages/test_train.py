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
from ddpm.checkpoint import load_model
from stages.params import flat
from stages.runner import EXIT_INTERRUPTED, run_stage
from stages.tracking import _closing

CHECKPOINTS, MODEL, LOSSES = Path("build/checkpoints"), Path("build/model"), Path("build/losses.csv")
CONSTANT = {"train.rate_schedule": "constant"}


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
def interrupted(place, write_params, monkeypatch, capsys):
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
            with pytest.raises(SystemExit) as caught:
                run_stage("train", module.main)
        assert caught.value.code == EXIT_INTERRUPTED == 75
        *_, line = capsys.readouterr().err.splitlines()
        return line

    return run


def results():
    """The bytes of the weights, and of the table of losses."""
    names = ("averaged.safetensors", "raw.safetensors")
    return {name: (MODEL / name).read_bytes() for name in names} | {"losses": LOSSES.read_bytes()}


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
    assert list(table.columns) == ["step", "loss", "learning_rate", "num_images_seen"]
    assert list(table["step"]) == [4, 6]  # the last step among them
    assert list(table["num_images_seen"]) == [16, 24]
    assert table["learning_rate"].gt(0.0).all()


def test_a_logged_loss_is_the_mean_since_the_one_before(train):
    train({"train.log_every": 1})
    each = pd.read_csv(LOSSES)["loss"]
    shutil.rmtree(CHECKPOINTS)
    train({"train.log_every": 4})
    assert pd.read_csv(LOSSES)["loss"].tolist() == pytest.approx([each[:4].mean(), each[4:].mean()], rel=1e-5)


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
    monkeypatch.setattr(module, "save", lambda _: pytest.fail("a step was taken"))
    assert train() == before
    assert "nothing is left to train" in capsys.readouterr().out


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(interrupted, train, uninterrupted, capsys):
    interrupted(5)
    assert steps_kept() == [4, 5]
    *_, newest = sorted(CHECKPOINTS.glob("*/step_*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    assert train() == uninterrupted
    printed = capsys.readouterr().out
    assert f"{newest} is damaged" in printed and "step_000000004.safetensors" in printed.split("going on from")[1]


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
    assert {**watched, "losses": b""} == {**uninterrupted, "losses": b""}


def test_a_resumed_training_may_be_watched_otherwise(interrupted, train, uninterrupted):
    interrupted(3)
    watched = train({"train.log_every": 1, "train.checkpoint_every": 5, "train.keep_checkpoints": 1})
    assert {**watched, "losses": b""} == {**uninterrupted, "losses": b""}
    assert list(pd.read_csv(LOSSES)["step"]) == [2, 4, 5, 6]


def test_the_newest_checkpoints_are_kept(train):
    train({"train.checkpoint_every": 1, "train.keep_checkpoints": 3})
    assert steps_kept() == [4, 5, 6]


def test_with_a_constant_rate_a_finished_training_is_carried_further(train, capsys):
    train(CONSTANT | {"train.num_steps": 4})
    carried = train(CONSTANT | {"train.num_steps": 6})
    assert "step_000000004.safetensors" in capsys.readouterr().out
    assert len(list(CHECKPOINTS.iterdir())) == 1
    for path in CHECKPOINTS.glob("*/*"):
        path.unlink()
    assert train(CONSTANT | {"train.num_steps": 6}) == carried


def test_with_a_constant_rate_fewer_steps_do_not_publish_more(train):
    short = train(CONSTANT | {"train.num_steps": 4})
    train(CONSTANT | {"train.num_steps": 6, "train.keep_checkpoints": 9})
    assert train(CONSTANT | {"train.num_steps": 4}) == short


def test_with_a_falling_rate_more_steps_are_another_training(train, capsys):
    train({"train.num_steps": 4})
    train({"train.num_steps": 6})
    assert "going on from" not in capsys.readouterr().out
    assert len(list(CHECKPOINTS.iterdir())) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_says_which_and_where_and_keeps_the_step(interrupted, number):
    line = interrupted(3, number)
    (folder,) = CHECKPOINTS.iterdir()
    path = folder / "step_000000003.safetensors"
    assert line == f"train: {number.name} at step 3, kept in {path}; run it again to go on"
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
    assert set(notes.metrics[2]) == {"loss", "learning_rate", "num_images_seen", "images_per_second"}
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


# What a training learns from, and another value of it: a new parameter must be put here or among the watching ones.
LEARNING = {
    "splits": ["valid"], "unet.widths": [16, 16], "unet.attention": [True, False], "unet.num_res_blocks": 2,
    "unet.time_embedding_dim": 10, "unet.norm_groups": 2, "unet.dropout": 0.2, "diffusion.schedule": "linear",
    "diffusion.num_timesteps": 21, "diffusion.beta_start": 0.002, "diffusion.beta_end": 0.03,
    "diffusion.prediction": "v", "num_steps": 7, "batch_size": 5, "seed": 4, "random_flips": False, "loss": "l1",
    "learning_rate": 0.003, "rate_schedule": "constant", "warmup_steps": 3, "gradient_clip": None, "ema_decay": 0.8,
    "ema_warmup": False, "precision": "bfloat16",
}  # fmt: skip
WATCHING = {
    "log_every": 3, "sample_every": 3, "num_grid_images": 3, "grid_sampling_steps": 2, "checkpoint_every": 3,
    "keep_checkpoints": 3,
}  # fmt: skip


def fingerprint(make_params, changes=None, md5="0" * 32):
    return module.fingerprint(make_params(changes).train, md5)


def test_every_parameter_is_either_learnt_from_or_watched_by(make_params):
    assert set(flat(make_params().section("train"))) == {*LEARNING, *WATCHING}


@pytest.mark.parametrize("name", LEARNING)
def test_what_is_learnt_from_makes_another_experiment(make_params, name):
    assert fingerprint(make_params, {f"train.{name}": LEARNING[name]}) != fingerprint(make_params)


@pytest.mark.parametrize("name", WATCHING)
def test_what_is_watched_by_leaves_it_the_same_experiment(make_params, name):
    assert fingerprint(make_params, {f"train.{name}": WATCHING[name]}) == fingerprint(make_params)


def test_other_sections_leave_it_the_same_experiment(make_params):
    assert fingerprint(make_params, {"sample.seed": 5, "evaluate.seed": 6}) == fingerprint(make_params)


def test_other_data_makes_another_experiment(make_params):
    assert fingerprint(make_params, md5="1" * 32) != fingerprint(make_params)


def test_other_code_makes_another_experiment(make_params, monkeypatch):
    before = fingerprint(make_params)
    monkeypatch.setattr(module, "code_digest", lambda *_: "another")
    assert fingerprint(make_params) != before


def test_the_number_of_steps_matters_only_where_the_rate_depends_on_it(make_params):
    constant, more = (fingerprint(make_params, CONSTANT | {"train.num_steps": n}) for n in (6, 7))
    assert constant == more
    assert fingerprint(make_params, {"train.num_steps": 7}) != fingerprint(make_params)


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
    assert len(module.prepare(make_params().train).images.images) == 20
    assert len(module.prepare(make_params({"train.splits": ["train", "valid", "test"]}).train).images.images) == 35
    assert train({"train.splits": ["valid"]})["raw.safetensors"] != train()["raw.safetensors"]


def test_the_grid_of_a_step_comes_from_the_averaged_weights_and_the_same_noise(train, make_params):
    experiment = module.prepare(make_params().train)
    first = module.drawn_grid(experiment)
    torch.rand(5)
    assert (module.drawn_grid(experiment) == first).all()
    with torch.no_grad():
        for parameter in experiment.state.model.parameters():
            parameter.add_(1.0)
    assert (module.drawn_grid(experiment) == first).all()
    with torch.no_grad():
        for parameter in experiment.state.ema.module.parameters():
            parameter.add_(0.3)
    assert (module.drawn_grid(experiment) != first).any()


def test_each_parameter_reaches_the_training(make_params):
    wanted = make_params({f"train.{name}": value for name, value in LEARNING.items() if name != "precision"}).train
    config = module.training_config(wanted)
    for name in ("num_steps", "seed", "loss", "learning_rate", "rate_schedule", "warmup_steps", "gradient_clip"):
        assert getattr(config, name) == getattr(wanted, name)
    assert (config.ema_decay, config.ema_warmup, config.precision) == (0.8, False, "float32")
