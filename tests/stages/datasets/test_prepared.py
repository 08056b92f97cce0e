"""Reading the prepared dataset: images, splits, digests, and labels for a class-conditional network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from contract.errors import StageError
from ddpm.classes import NO_CLASS
from stages.datasets.labels import digest_labels, label_images
from stages.datasets.prepared import all_images, dataset_digest, positions_of
from tests.small_experiment import CLASSES


def test_the_images_of_a_split_come_in_the_order_of_the_index(folder, dataset):
    images = dataset(splits=("train", "valid", "train", "test", "valid"))
    for splits, positions in ((["train"], [0, 2]), (["valid"], [1, 4]), (["valid", "train"], [0, 1, 2, 4])):
        found = all_images()[positions_of(splits)]
        np.testing.assert_array_equal(found.permute(0, 2, 3, 1), images[positions])
        found.zero_()  # a copy: the file stays as it is
    np.testing.assert_array_equal(np.load("build/dataset/images.npy"), images)


def test_a_split_without_images_is_an_error_that_counts_the_others(folder, dataset):
    dataset(splits=("train", "train", "test"))
    with pytest.raises(StageError, match=r"no image in split valid; .*'train': 2, 'test': 1"):
        positions_of(["valid"])


@pytest.mark.parametrize("name", ["index.csv", "images.npy"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_half_a_file_is_one_line(folder, dataset, name, share):
    dataset()
    path = Path("build/dataset", name)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(StageError, match=rf"^{path} is damaged, .*: `dvc checkout --force {path}` brings it back$"):
        positions_of(["train"])


def test_the_digest_is_of_pixels_and_splits(folder, dataset):
    dataset(splits=("train", "valid"))
    before, index, summary = dataset_digest(), Path("build/dataset/index.csv"), Path("build/dataset/dataset.json")
    assert len(before) == 32 and dataset_digest() == before
    for path, old, new in ((index, "valid", "test"), (summary, "0" * 32, "1" * 32)):
        text = path.read_text()
        path.write_text(text.replace(old, new))
        assert dataset_digest() != before
        path.write_text(text)


def test_a_class_without_training_images_has_no_label(folder, dataset):
    dataset(splits=("train", "valid", "train", "test", "valid", "train"))
    labels, classes = label_images(positions_of(["train"]))
    assert classes == (CLASSES[1], CLASSES[2])
    assert labels.dtype == torch.int64 and labels.tolist() == [1, NO_CLASS, 0, 1, NO_CLASS, 0]


def test_a_single_class_is_an_error(folder, dataset):
    dataset(splits=("train", "valid", "valid", "train"))
    with pytest.raises(StageError, match="at least two classes, got 1"):
        label_images(positions_of(["train"]))


def test_the_digest_is_that_of_the_training_labels():
    labels, positions = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 2])
    digest = digest_labels(labels, positions)
    assert digest_labels(torch.tensor([0, 2, 2, 1]), positions) == digest
    assert len({digest, digest_labels(torch.tensor([1, 1, 2, 0]), positions), digest_labels(None, positions)}) == 3
    assert digest_labels(None, positions) == ""
