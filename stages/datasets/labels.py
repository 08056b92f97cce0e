"""The classes of the prepared dataset, as a class-conditional network counts them."""

import hashlib

import torch
from torch import Tensor

from contract.errors import StageError
from ddpm.classes import NO_CLASS, ImageClass
from stages.datasets.prepared import image_index


def labelled(positions: Tensor) -> tuple[Tensor, tuple[ImageClass, ...]]:
    """The label of each image of the prepared array, and the class that each label stands for.

    The classes of the images at `positions` are counted in the order of their numbers, which need neither follow each
    other nor start at 0; an image of a class that none of those has gets NO_CLASS.

    Args:
        positions: of the images to train on, int64.

    Returns:
        Labels, int64, of all images of the array; and the classes, by label.

    Raises:
        StageError: all images are of one class.
    """
    index = image_index()
    trained_on = index.iloc[positions.numpy()]
    by_number = trained_on.drop_duplicates("class_number").sort_values("class_number")
    if len(by_number) < 2:
        raise StageError(
            f"train.class_conditional needs images of at least two classes, got {len(by_number)}; set it to false, or "
            "sort the images into sub-folders, one a class"
        )
    classes = tuple(
        ImageClass(int(number), str(name))
        for number, name in zip(by_number["class_number"], by_number["class_name"], strict=True)
    )
    label_of = {each.number: label for label, each in enumerate(classes)}
    labels = [label_of.get(int(number), NO_CLASS) for number in index["class_number"]]
    return torch.tensor(labels, dtype=torch.int64), classes


def labels_digest(labels: Tensor | None, positions: Tensor) -> str:
    """Of the classes that the images at `positions` are told to be of; empty, where none are told."""
    if labels is None:
        return ""
    return hashlib.md5(labels[positions].numpy().data, usedforsecurity=False).hexdigest()
