"""Evaluation during training: it watches alone, and what it finds best is published."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import ddpm.features
import ddpm.metrics
import stages.train as train_stage
from contract.errors import StageError
from ddpm.checkpoint import load_model
from ddpm.metrics import KernelDistance, kernel_distance
from stages.runtime.runner import run_stage
from stages.training import evaluation as module
from tracking.runs import _closing

MODEL, CHECKPOINTS = Path("build/model"), Path("build/checkpoints")
FIGURES = [f"kid_efficientnet_lite0{end}" for end in ("", "_low", "_high")]
EVERY_TWO = {"train.evaluate_every": 2, "train.extra_ema_decays": [0.5]}


@pytest.fixture
def place(folder, dataset, mean_colours, signal_handlers):
    """A folder with the prepared dataset."""
    dataset()
    return folder


@pytest.fixture
def train(place, make_params):
    """Trains and gives the table of evaluations, if there is one."""

    def run(changes=EVERY_TWO):
        train_stage.main(make_params(changes))
        path = MODEL / "evaluations.csv"
        return pd.read_csv(path) if path.exists() else None

    return run


def weights():
    return {path.name: path.read_bytes() for path in MODEL.glob("*.safetensors")}


def test_it_changes_nothing_that_is_learnt(train):
    train(EVERY_TWO | {"train.evaluate_every": None})
    before, losses = weights(), Path("build/losses.csv").read_bytes()
    assert "best.safetensors" not in before and not (MODEL / "evaluations.csv").exists()
    assert not list(CHECKPOINTS.glob("*/best*"))
    shutil.rmtree("build/checkpoints")
    train()
    after = weights()
    assert after.pop("best.safetensors") and after == before
    assert Path("build/losses.csv").read_bytes() == losses


def test_off_it_extracts_no_features(train, mean_colours):
    train({})
    assert mean_colours.batches == []


def test_a_row_at_each_evaluated_step_and_the_last(train, notes, monkeypatch):
    curve = {}
    monkeypatch.setattr(
        notes, "record_metrics", lambda values, step: curve.update({step: curve.get(step, {}) | values})
    )
    monkeypatch.setattr(train_stage, "opened_run", lambda *_: _closing(notes))
    table = train(EVERY_TWO | {"train.evaluate_every": 4})
    assert table["step"].tolist() == [4, 6] and list(table.columns) == ["step", *FIGURES, "split", "num_images"]
    assert (table[FIGURES[1]] < table[FIGURES[0]]).all() and (table[FIGURES[0]] < table[FIGURES[2]]).all()
    for _, row in table.iterrows():
        assert [curve[row["step"]][f"training_{name}"] for name in FIGURES] == pytest.approx(row[FIGURES].tolist())
    assert f"training_{FIGURES[0]}" not in curve[2]


def test_the_figure_is_that_of_the_averaged_weights_images_and_real_ones(train, make_params, mean_colours):
    wanted = EVERY_TWO | {"train.evaluate_split": "train", "train.evaluate_num_images": 13}
    table = train(wanted)
    experiment = train_stage.prepare(make_params(wanted).train)
    train_stage.resume(experiment)
    drawn = train_stage.drawn(experiment, 13)
    chosen = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:13].numpy()
    real = mean_colours.of(np.load("build/dataset/images.npy")[:20][chosen])
    expected = kernel_distance(real, mean_colours(drawn).float(), num_subsets=1, subset_size=13)
    row = table.iloc[-1]
    assert [row[name] for name in FIGURES] == pytest.approx([expected.mean, expected.low, expected.high], rel=1e-5)


@pytest.mark.parametrize("best", [2, 4, 6])
def test_the_weights_of_the_least_distance_are_published(train, monkeypatch, best):
    constant = EVERY_TWO | {"train.rate_schedule": "constant"}
    train(constant | {"train.num_steps": best, "train.evaluate_every": None})
    expected = load_file(MODEL / "averaged.safetensors")
    shutil.rmtree("build/checkpoints")
    monkeypatch.setattr(ddpm.metrics, "kernel_distance", given_distances({2: 0.5, 4: 0.5, 6: 0.5} | {best: 0.1}))
    table = train(constant)
    assert table[FIGURES[0]].tolist() == [0.1 if step == best else 0.5 for step in (2, 4, 6)]
    published = load_file(MODEL / "best.safetensors")
    assert set(published) == set(expected)
    assert all(torch.equal(published[name], tensor) for name, tensor in expected.items())
    assert load_model(MODEL, "best").image_size == 16


def given_distances(by_step):
    """Stands in for the kernel distance: one after the other."""
    values = iter(by_step.values())

    def distance(*_, **__):
        value = next(values)
        return KernelDistance(value, 0.0, value - 0.1, value + 0.1)

    return distance


@pytest.mark.parametrize("stops", [[3], [2, 5]])
def test_a_resumed_training_has_the_evaluations_of_an_uninterrupted_one(train, write_params, monkeypatch, stops):
    expected, expected_weights = train(), weights()
    shutil.rmtree("build/checkpoints")
    shutil.rmtree(MODEL)
    learnt = train_stage.train

    def signalling(*arguments):
        for event in learnt(*arguments):
            if event.step in stops:
                os.kill(os.getpid(), signal.SIGTERM)
            yield event

    write_params(EVERY_TWO)
    with monkeypatch.context() as patch:
        patch.setattr(train_stage, "train", signalling)
        for _ in stops:
            with pytest.raises(SystemExit):
                run_stage("train", train_stage.main)
    pd.testing.assert_frame_equal(train(), expected)
    assert weights() == expected_weights


def test_a_finished_training_that_was_not_evaluated_is_evaluated_at_its_end(train):
    assert train({}) is None
    assert train({"train.evaluate_every": 4})["step"].tolist() == [6]
    assert load_file(MODEL / "best.safetensors").keys() == load_file(MODEL / "averaged.safetensors").keys()


@pytest.mark.parametrize(
    ("spoil", "found"),
    [(Path.unlink, "nothing readable"), (lambda path: save_file({}, path, {"step": "99"}), "step 99")],
)
def test_best_weights_that_are_no_longer_kept_stay_away_with_a_message(train, capsys, spoil, found):
    train()
    (kept,) = CHECKPOINTS.glob("*/best.safetensors")
    spoil(kept)
    shutil.rmtree(MODEL)
    module.publish_best(kept.parent, [{"step": 2, FIGURES[0]: 0.5}, {"step": 4, FIGURES[0]: 0.4}], MODEL)
    assert f"the best weights, of step 4, are no longer kept: {kept} holds {found}" in capsys.readouterr().out
    assert [path.name for path in MODEL.iterdir()] == ["evaluations.csv"]


@pytest.mark.parametrize("change", [{"train.evaluate_split": "train"}, {"train.evaluate_num_images": 11}])
def test_figures_on_other_images_are_dropped_and_the_end_is_evaluated_anew(train, change):
    before = train(EVERY_TWO | {"train.evaluate_num_images": 10})
    assert before["step"].tolist() == [2, 4, 6]
    after = train(EVERY_TWO | {"train.evaluate_num_images": 10, "train.evaluate_split": "train"} | change)
    assert after["step"].tolist() == [6]
    assert after["split"].tolist() == ["train"]
    assert (MODEL / "best.safetensors").is_file()


def test_a_training_killed_during_its_evaluation_has_lost_nothing(train, monkeypatch):
    expected, expected_weights = train(), weights()
    shutil.rmtree("build/checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(module.TrainingEvaluation, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train()
    assert [path.name for path in CHECKPOINTS.glob("*/step_*")] == ["step_000000002.safetensors"]
    pd.testing.assert_frame_equal(train(), expected)
    assert weights() == expected_weights


def test_no_more_samples_are_compared_than_there_are_real_images(train):
    table = train(EVERY_TWO | {"train.evaluate_split": "train", "train.evaluate_num_images": 50})
    assert table["num_images"].tolist() == [20, 20, 20]


def test_a_split_of_too_few_images_is_one_clear_error(train):
    with pytest.raises(StageError, match=r"split test holds 3 images, and an evaluation needs 10: .*evaluate_split"):
        train(EVERY_TWO | {"train.evaluate_split": "test"})


def test_the_real_extractor_fits_in(place, make_params, monkeypatch, notes):
    monkeypatch.setattr(module, "build_extractor", ddpm.features.build_extractor)
    rows, wanted = [], make_params(EVERY_TWO).train
    pixels = torch.zeros(10, 3, 16, 16, dtype=torch.uint8)
    evaluation = module.TrainingEvaluation(wanted, Path("kept"), rows, lambda _: pixels, notes, torch.device("cpu"))
    averaged, before = torch.nn.Linear(2, 2), torch.get_rng_state()
    evaluation.add(2, averaged)
    assert torch.equal(torch.get_rng_state(), before)
    assert rows[0]["step"] == 2 and rows[0][FIGURES[0]] > 0.1  # black images are no noise
    assert load_file("kept/best.safetensors").keys() == {"weight", "bias"}
