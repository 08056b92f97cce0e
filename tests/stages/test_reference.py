"""The reference stage: features of real images, their record, and nothing if evaluation is off."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import reference as module
from stages.datasets.prepared import dataset_digest

REFERENCE = Path("build/reference")


@pytest.fixture
def referenced(folder, dataset, mean_colours, make_params):
    """Extracts the features of the noisy dataset; gives them by split, the table of images and the record."""

    def run(changes=None, **options):
        if not Path("build/dataset").exists():
            dataset(**options)
        module.main(make_params(changes))
        record = json.loads((REFERENCE / "reference.json").read_text())
        features = {split: np.load(REFERENCE / f"{split}.npy") for split in record["num_images"]}
        return features, pd.read_csv(REFERENCE / "images.csv"), record

    return run


def test_each_split_has_the_features_of_its_images_in_random_order(referenced, mean_colours):
    features, table, _ = referenced(splits=("train",) * 20 + ("valid",) * 12 + ("test",))
    assert mean_colours.batches == [5, 5, 5, 1, 5, 5, 2, 1]
    images = np.load("build/dataset/images.npy")
    assert (table["number"] == 1 + table["position"]).all()
    for split, start, count in (("train", 0, 20), ("valid", 20, 12), ("test", 32, 1)):
        positions = table.loc[table["split"] == split, "position"].to_numpy()
        assert len(set(positions)) == min(count, 16) and set(positions) <= set(range(start, start + count))
        assert count == 1 or (np.diff(positions) < 0).any()
        np.testing.assert_array_equal(features[split], mean_colours.of(images[positions]))
        assert features[split].dtype == np.float32
    with np.load(REFERENCE / "valid_statistics.npz") as statistics:
        np.testing.assert_allclose(statistics["mu"], features["valid"].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(statistics["sigma"], np.cov(features["valid"], rowvar=False), rtol=1e-5)
        assert statistics["sigma"].dtype == np.float64
    assert not (REFERENCE / "test_statistics.npz").exists()  # one image has no covariance


def test_bound_and_seed_choose_the_images(referenced):
    (_, first, _), (_, again, _), (_, other, _) = referenced(), referenced(), referenced({"reference.seed": 1})
    assert first.equals(again) and not first.equals(other)
    _, everything, _ = referenced({"reference.max_images_per_split": None})
    assert sorted(everything["position"]) == list(range(35))
    assert everything[:16].equals(first[:16])  # fewer are the first of more


def test_the_record_names_dataset_extractor_weights_versions_and_counts(referenced, mean_colours):
    _, _, record = referenced()
    assert record == {
        "extracted": True,
        "dataset_md5": dataset_digest(),
        "num_images": {"train": 16, "valid": 12, "test": 3},
        "seed": 0,
        "extractor": "efficientnet_lite0",
        "resize": "none",
        "weights_sha256": mean_colours.weights_digest(),
        "extractor_versions": f"torch {version('torch')}, numpy {version('numpy')}",
    }


def test_switched_off_nothing_is_extracted(folder, dataset, make_params, mean_colours, capsys):
    dataset()
    module.main(make_params({"evaluate.enabled": False}))
    assert json.loads((REFERENCE / "reference.json").read_text()) == {"extracted": False}
    assert "switched off by evaluate.enabled" in capsys.readouterr().out and mean_colours.batches == []
