"""Evaluation during training: it changes nothing that is learnt, and what it finds best is published."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import ddpm.metrics
from ddpm.metrics import KernelDistance, kernel_distance
from ddpm.published import load_model
from stages.training.experiment import prepare_experiment
from stages.training.grids import draw_samples
from stages.training.resume import resume

MODEL, CHECKPOINTS = Path("build/model"), Path("build/checkpoints")
FIGURES = [f"kid_efficientnet_lite0{end}" for end in ("", "_low", "_high")]
EVERY_TWO = {"train.evaluate_every": 2, "train.extra_ema_decays": [0.5]}


@pytest.fixture
def evaluate(train, mean_colours):
    """Trains, and gives the results and the table of evaluations."""

    def run(changes=None):
        results = train(EVERY_TWO | (changes or {}))
        return results, pd.read_csv(MODEL / "evaluations.csv")

    return run


def test_it_changes_nothing_that_is_learnt(train, evaluate, mean_colours):
    before = train(EVERY_TWO | {"train.evaluate_every": None})
    assert "best.safetensors" not in before and not (MODEL / "evaluations.csv").exists()
    assert not list(CHECKPOINTS.glob("*/best*")) and mean_colours.batches == []
    # A finished training is evaluated at its end.
    _, table = evaluate({"train.evaluate_every": 4})
    assert table["step"].tolist() == [6]
    assert load_file(MODEL / "best.safetensors").keys() == load_file(MODEL / "averaged.safetensors").keys()
    shutil.rmtree(CHECKPOINTS)
    after, _ = evaluate()
    assert after.pop("best.safetensors") and after == before


def test_a_row_at_each_evaluated_step_and_the_last(evaluate, notes, recording_run):
    _, table = evaluate({"train.evaluate_every": 4})
    assert table["step"].tolist() == [4, 6] and list(table.columns) == ["step", *FIGURES, "split", "num_images"]
    assert (table[FIGURES[1]] < table[FIGURES[0]]).all() and (table[FIGURES[0]] < table[FIGURES[2]]).all()
    for _, row in table.iterrows():
        assert [notes.metrics[row["step"]][f"training_{name}"] for name in FIGURES] == pytest.approx(
            row[FIGURES].tolist()
        )
    assert f"training_{FIGURES[0]}" not in notes.metrics[2]


@pytest.mark.parametrize(("wished", "num_images"), [(13, 13), (50, 20)])
def test_the_figure_compares_averaged_weights_with_real_images(evaluate, make_params, mean_colours, wished, num_images):
    changes = {"train.evaluate_split": "train", "train.evaluate_num_images": wished}
    _, table = evaluate(changes)
    experiment = prepare_experiment(make_params(EVERY_TWO | changes).train)
    resume(experiment)
    samples = draw_samples(experiment, num_images)
    chosen = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:num_images].numpy()
    real = mean_colours.of(np.load("build/dataset/images.npy")[:20][chosen])
    expected = kernel_distance(real, mean_colours(samples).float(), num_subsets=1, subset_size=num_images)
    row = table.iloc[-1]
    assert [row[name] for name in FIGURES] == pytest.approx([expected.mean, expected.low, expected.high], rel=1e-5)
    assert row["num_images"] == num_images


@pytest.mark.parametrize("best", [2, 4, 6])
def test_the_weights_of_the_least_distance_are_published(train, evaluate, monkeypatch, best):
    constant = {"train.rate_schedule": "constant"}
    train(EVERY_TWO | constant | {"train.num_steps": best, "train.evaluate_every": None})
    expected = load_file(MODEL / "averaged.safetensors")
    shutil.rmtree(CHECKPOINTS)
    distances = [0.1 if step == best else 0.5 for step in (2, 4, 6)]
    given = iter(distances)
    monkeypatch.setattr(ddpm.metrics, "kernel_distance", lambda *_, **__: KernelDistance(next(given), 0.0, 0.0, 1.0))
    _, table = evaluate(constant)
    assert table[FIGURES[0]].tolist() == distances
    published = load_file(MODEL / "best.safetensors")
    assert set(published) == set(expected)
    assert all(torch.equal(published[name], tensor) for name, tensor in expected.items())
    assert load_model(MODEL, "best").image_size == 16


@pytest.mark.parametrize("stops", [[3], [2, 5], ["killed while it evaluates"]])
def test_a_resumed_training_has_the_evaluations_of_another(
    train, evaluate, interrupt, steps_kept, mean_colours, monkeypatch, stops
):
    def die(_):
        raise KeyboardInterrupt

    expected, expected_table = evaluate()
    shutil.rmtree("build/checkpoints")
    shutil.rmtree(MODEL)
    if stops == ["killed while it evaluates"]:
        with monkeypatch.context() as patch:
            patch.setattr(mean_colours, "forward", die)
            with pytest.raises(KeyboardInterrupt):
                train(EVERY_TWO)
        assert steps_kept() == [2]
    else:
        for step in stops:
            interrupt(step, EVERY_TWO)
    results, table = evaluate()
    assert results == expected and table.equals(expected_table)


@pytest.mark.parametrize(
    ("spoil_file", "found"),
    [(Path.unlink, "nothing readable"), (lambda path: save_file({}, path, {"step": "99"}), "step 99")],
)
def test_best_weights_that_are_no_longer_kept_are_left_out(train, evaluate, capsys, spoil_file, found):
    evaluate()
    (kept,) = CHECKPOINTS.glob("*/best.safetensors")
    spoil_file(kept)
    shutil.rmtree(MODEL)
    train(EVERY_TWO)
    assert f"are no longer kept: {kept} holds {found}" in "".join(capsys.readouterr())
    assert (MODEL / "evaluations.csv").is_file() and not (MODEL / "best.safetensors").exists()


@pytest.mark.parametrize("change", [{}, {"train.evaluate_num_images": 11}])
def test_figures_on_other_images_are_dropped(evaluate, change):
    _, before = evaluate({"train.evaluate_num_images": 10})
    assert before["step"].tolist() == [2, 4, 6]
    _, after = evaluate({"train.evaluate_num_images": 10, "train.evaluate_split": "train"} | change)
    assert after["step"].tolist() == [6] and after["split"].tolist() == ["train"]
    assert (MODEL / "best.safetensors").is_file()


def test_the_real_extractor_fits_in(train):
    train({"train.evaluate_every": 6})
    table = pd.read_csv(MODEL / "evaluations.csv")
    assert table["step"].tolist() == [6] and np.isfinite(table[FIGURES[0]]).all()
    assert (MODEL / "best.safetensors").is_file()
