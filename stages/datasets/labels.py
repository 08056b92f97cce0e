"""Labels of the prepared images for a class-conditional network."""

import hashlib

import torch
from torch import Tensor

from contract.errors import StageError
from ddpm.classes import NO_CLASS, ImageClass
from stages.datasets.prepared import image_index


def label_images(positions: Tensor) -> tuple[Tensor, tuple[ImageClass, ...]]:
    """Return the label of each image of the prepared array, int64, and the class of each label.

    Labels 0, 1, … follow the order of the class numbers, which may have gaps. An image of a class without training
    images, whose positions are given, gets NO_CLASS.

    Raises:
        StageError: the training images have fewer than two classes.
    """
    index = image_index()
    trained = index.loc[positions.numpy(), ["class_number", "class_name"]].drop_duplicates("class_number")
    classes = tuple(ImageClass(*each) for each in trained.sort_values("class_number").itertuples(index=False))
    if len(classes) < 2:
        raise StageError(
            f"train.class_conditional needs images of at least two classes, got {len(classes)}; set it to false, or "
            "sort the images into one sub-folder per class"
        )
    label_of = {each.number: label for label, each in enumerate(classes)}
    labels = [label_of.get(number, NO_CLASS) for number in index["class_number"]]
    return torch.tensor(labels, dtype=torch.int64), classes


def digest_labels(labels: Tensor | None, positions: Tensor) -> str:
    """Return a digest of the labels of the images at `positions`; empty without labels."""
    if labels is None:
        return ""
    return hashlib.md5(labels[positions].numpy().data, usedforsecurity=False).hexdigest()
