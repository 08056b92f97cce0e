"""Labels of the prepared images for a class-conditional network."""

import pytest
import torch

from contract.errors import StageError
from ddpm.classes import NO_CLASS
from stages.datasets.labels import digest_labels, label_images
from stages.datasets.prepared import positions_of
from tests.small_experiment import CLASSES


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
