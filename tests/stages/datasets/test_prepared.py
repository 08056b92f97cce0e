"""Reading what earlier stages made."""

from pathlib import Path

import numpy as np
import pytest

from contract.errors import StageError
from stages.datasets.prepared import all_images, dataset_digest, positions_of


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


def test_the_digest_is_of_pixels_and_splits(folder, dataset):
    dataset(splits=("train", "valid"))
    before, index, summary = dataset_digest(), Path("build/dataset/index.csv"), Path("build/dataset/dataset.json")
    assert len(before) == 32 and dataset_digest() == before
    for path, old, new in ((index, "valid", "test"), (summary, "0" * 32, "1" * 32)):
        text = path.read_text()
        path.write_text(text.replace(old, new))
        assert dataset_digest() != before
        path.write_text(text)
