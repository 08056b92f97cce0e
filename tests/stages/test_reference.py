"""The reference stage: features of real images, their record, and nothing if evaluation is off."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import reference as module
from stages.datasets.prepared import dataset_digest
from stages.evaluation.real_features import read_real_features

REFERENCE = Path("build/reference")


@pytest.fixture
def referenced(folder, dataset, mean_colours, make_params):
    """Extracts the features of the noisy dataset, and gives them."""

    def run(changes=None, **options):
        if not Path("build/dataset").exists():
            dataset(**options)
        module.main(make_params(changes))
        return read_real_features(REFERENCE)

    return run


def test_each_split_has_the_features_of_its_images_in_random_order(referenced, mean_colours):
    real = referenced()
    images = np.load("build/dataset/images.npy")
    for split, start, count in (("train", 0, 20), ("valid", 20, 12), ("test", 32, 3)):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:16].numpy()
        assert torch.equal(real.features[split], mean_colours.of(images[start + order]))
        table = real.images[real.images["split"] == split]
        assert table["position"].tolist() == (start + order).tolist()
        assert table["number"].tolist() == (1 + start + order).tolist()
    assert real.features["train"].dtype == torch.float32


def test_bound_and_seed_choose_the_images(referenced):
    first, again, other = referenced(), referenced(), referenced({"reference.seed": 1})
    assert first.images.equals(again.images) and not first.images.equals(other.images)
    everything = referenced({"reference.max_images_per_split": None})
    assert sorted(everything.images["position"]) == list(range(35))


def test_the_record_names_dataset_extractor_weights_versions_and_counts(referenced, mean_colours):
    record = referenced().record
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


def test_a_split_that_is_not_there_is_left_out(referenced):
    assert list(referenced(splits=("train",) * 12 + ("test",) * 2).features) == ["train", "test"]


def test_features_are_extracted_in_batches_without_changing_them(referenced, mean_colours):
    real = referenced()
    assert mean_colours.batches == [5, 5, 5, 1, 5, 5, 2, 3]
    together = referenced({"reference.batch_size": 100})
    assert all(torch.equal(real.features[split], together.features[split]) for split in real.features)


def test_switched_off_nothing_is_extracted(folder, make_params, mean_colours, capsys):
    module.main(make_params({"evaluate.enabled": False}))
    assert json.loads((REFERENCE / "reference.json").read_text()) == {"extracted": False}
    assert "switched off by evaluate.enabled" in capsys.readouterr().out and mean_colours.batches == []
