"""Features of real images on disk: whole, with their statistics, and what each row is."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages.evaluation.real_features import RealFeatures, read_real_features, write_real_features

FOLDER = Path("build/reference")


@pytest.fixture
def real(folder):
    """Features of three splits, one of which holds a single image."""
    counts = {"train": 6, "valid": 4, "test": 1}
    generator = torch.Generator().manual_seed(0)
    features = {split: torch.randn(count, 3, generator=generator) for split, count in counts.items()}
    splits = [split for split, count in counts.items() for _ in range(count)]
    images = pd.DataFrame({"split": splits, "position": range(11), "number": range(100, 111)})
    return RealFeatures(features, images, {"num_images": counts, "extractor": "none"})


def test_what_was_written_is_read(real):
    write_real_features(FOLDER, real)
    found = read_real_features(FOLDER)
    assert found.record == real.record and found.images.equals(real.images)
    assert list(found.features) == list(real.features)
    assert all(torch.equal(found.features[split], features) for split, features in real.features.items())


def test_the_statistics_are_those_of_the_features(real):
    write_real_features(FOLDER, real)
    features = real.features["valid"].numpy()
    with np.load(FOLDER / "valid_statistics.npz") as statistics:
        np.testing.assert_allclose(statistics["mu"], features.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(statistics["sigma"], np.cov(features, rowvar=False), rtol=1e-5)
        assert statistics["sigma"].dtype == np.float64
    assert not (FOLDER / "test_statistics.npz").exists()  # one image has no covariance


def test_rows_of_several_splits_stand_as_their_features_do(real):
    for splits, numbers in ((["train", "test"], [*range(100, 106), 110]), (["test", "valid"], [110, *range(106, 110)])):
        assert real.select_images(splits)["number"].tolist() == numbers
        assert torch.equal(real.select(splits), torch.cat([real.features[split] for split in splits]))
