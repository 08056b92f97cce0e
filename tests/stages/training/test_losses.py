"""The logged losses: means since the row before, the whole and by quartile of t."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ddpm.training import draw_batch
from stages.training.experiment import prepare_experiment

CHECKPOINTS, LOSSES = Path("build/checkpoints"), Path("build/losses.csv")
QUARTILES = [f"loss_t_quartile_{number}" for number in (1, 2, 3, 4)]


def test_the_table_has_a_row_at_each_logged_step(train):
    train({"train.log_every": 4})
    table = pd.read_csv(LOSSES)
    assert list(table.columns) == ["step", "loss", "learning_rate", "num_images_seen", *QUARTILES]
    assert list(table["step"]) == [4, 6]  # the last step among them
    assert list(table["num_images_seen"]) == [16, 24]
    # Of a warm-up of two steps and half a cosine in four.
    assert table["learning_rate"].tolist() == pytest.approx([0.002 * (2 + 2**0.5) / 4, 0.002 * (2 - 2**0.5) / 4])


def test_a_row_weighs_each_step_and_each_image_since_the_one_before_alike(train, make_params):
    train({"train.log_every": 1})
    table = pd.read_csv(LOSSES)
    each = table[QUARTILES].to_numpy()
    images = prepare_experiment(make_params().train).images
    quartiles = [draw_batch(images, step, seed=3, num_timesteps=20).t // 5 for step in range(6)]
    counts = np.array([np.bincount(numbers, minlength=4) for numbers in quartiles])
    assert (np.isnan(each) == (counts == 0)).all() and (counts == 0).any()  # no image, no figure
    shutil.rmtree(CHECKPOINTS)
    train({"train.log_every": 4})
    for number, steps in enumerate([slice(0, 4), slice(4, 6)]):
        row = pd.read_csv(LOSSES).loc[number]
        assert row["loss"] == pytest.approx(table["loss"][steps].mean(), rel=1e-5)
        num_images = np.where(counts[steps].any(axis=0), counts[steps].sum(axis=0), np.nan)
        expected = np.nansum(each[steps] * counts[steps], axis=0) / num_images
        assert row[QUARTILES].tolist() == pytest.approx(expected.tolist(), rel=1e-5, nan_ok=True)


def test_losses_and_grids_are_recorded(train, recording_run, notes):
    train()
    assert recording_run == [("train", None)] and notes.ended == ["FINISHED"]
    assert list(notes.metrics) == [2, 4, 6]
    always = {"loss", "learning_rate", "num_images_seen", "images_per_second", "gradient_norm"}
    assert always < set(notes.metrics[2]) <= always | set(QUARTILES)
    assert notes.metrics[2]["gradient_norm"] > 0.0
    assert notes.metrics[2]["loss"] == pytest.approx(pd.read_csv(LOSSES)["loss"][0])
    assert [(key, step) for key, step, _ in notes.images] == [("samples", 0), ("samples", 4), ("samples", 6)]
    # Four images of 16 pixels, two by two, two pixels apart.
    assert all(image.shape == (38, 38, 3) for _, _, image in notes.images)
    assert notes.files == [("build/losses.csv", "training")]
