"""The tables and pictures of nearest training images, and when there are figures of them."""

import numpy as np
import pandas as pd
import pytest
import torch

from ddpm.memorisation import nearest_images
from stages.evaluation.memorisation import draw_closest_pairs, measure_memorisation, tabulate_nearest
from stages.evaluation.real_features import RealFeatures

COUNTS = {"train": 30, "valid": 20, "test": 25}
SAMPLES = {"train": [7, 3], "test": [24, 0, 11]}
"""Which real images are copied by the samples."""


@pytest.fixture
def real():
    """Features of three splits, whose images stand at every second place of the array, the last first."""
    generator = torch.Generator().manual_seed(0)
    features = {split: torch.randn(count, 6, generator=generator) for split, count in COUNTS.items()}
    splits = [split for split, count in COUNTS.items() for _ in range(count)]
    positions = np.arange(2 * len(splits), 0, -2)
    return RealFeatures(features, pd.DataFrame({"split": splits, "position": positions, "number": 1 + positions}), {})


@pytest.fixture
def nearest(real):
    """Of samples that are nearly copies of training images, the later the less."""
    copied = torch.cat([real.features[split][indices] for split, indices in SAMPLES.items()])
    noise = torch.arange(5.0)[:, None] * 0.01 * torch.ones(6)
    return nearest_images(copied + noise, real.select(["train", "test"]))


def test_each_sample_names_its_image_whatever_the_split(real, nearest):
    table = tabulate_nearest(nearest, real, ["train", "test"])
    assert list(table.columns) == ["sample", "nearest_split", "nearest_position", "nearest_number", "distance"]
    assert table["sample"].tolist() == list(range(5))
    assert table["nearest_split"].tolist() == ["train"] * 2 + ["test"] * 3
    rows = [*SAMPLES["train"], *(50 + index for index in SAMPLES["test"])]
    assert table["nearest_position"].tolist() == [150 - 2 * row for row in rows]
    assert table["nearest_number"].tolist() == [151 - 2 * row for row in rows]
    assert table["distance"].tolist() == pytest.approx([0.01 * i * 6**0.5 for i in range(5)], abs=1e-6)


def test_the_closest_pairs_come_first_four_in_a_row(real, nearest):
    table = tabulate_nearest(nearest, real, ["train", "test"])[::-1]
    images = torch.arange(151, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    samples = torch.arange(200, 205, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    picture = draw_closest_pairs(samples, images, table, num_pairs=5)
    assert picture.shape == (2 * 6 + 2, 8 * 6 + 2, 3)
    shown = picture[2::6, 2::6, 0]
    pairs = [value for sample in range(5) for value in (200 + sample, table["nearest_position"].loc[sample])]
    assert shown.flatten()[:10].tolist() == pairs
    assert draw_closest_pairs(samples, images, table, num_pairs=2).shape == (6 + 2, 4 * 6 + 2, 3)


def test_held_out_are_the_splits_that_were_not_trained_on(real, nearest, capsys):
    figures = measure_memorisation(nearest, real, ["train", "test"], "x")
    assert figures["memorised_share_x"] == 1.0 and figures["nearer_than_held_out_x"] == 1.0
    assert figures["train_splits"] == "train, test"
    assert (figures["num_training_images_compared"], figures["num_held_out"]) == (55, 20)
    few = measure_memorisation(nearest, real, ["train", "valid", "test"], "x")
    assert set(few) == {"train_splits", "num_training_images_compared", "num_held_out"}
    assert "no share of memorised samples, since 0 held-out images are too few" in capsys.readouterr().out
