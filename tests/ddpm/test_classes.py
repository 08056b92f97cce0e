"""Classes are asked for by name or number, and images have them in turn."""

import numpy as np
import pytest
import torch

from ddpm.classes import ImageClass, labels_of
from ddpm.guidance import labels_in_turn

# In the order of their labels; numbers neither follow each other nor start at 0.
CLASSES = (ImageClass(10, "globe thistle"), ImageClass(54, "sunflower"), ImageClass(77, "passion flower"))

FOLDERS = tuple(ImageClass(*each) for each in enumerate(sorted(map(str, range(1, 103)))))
"""Folders named 1 … 102, numbered in the order of their names as texts."""


@pytest.mark.parametrize(
    ("asked", "labels", "classes"),
    [
        (["sunflower"], (1,), CLASSES),
        ([54], (1,), CLASSES),
        (["54"], (1,), CLASSES),
        (["Globe Thistle", 77, "sunflower"], (0, 2, 1), CLASSES),
        (["sunflower", 54], (1, 1), CLASSES),
        (None, (0, 1, 2), CLASSES),
        (None, (), ()),
        # A name that is a number, such as of a sub-folder, is a name first, however the number is written.
        (["1", 1, "0", np.int64(2)], (0, 0, 2, 1), (ImageClass(0, "1"), ImageClass(1, "2"), ImageClass(2, "0"))),
        ([5, "12"], (47, 6), FOLDERS),
        ([7, "1.0", 1], (1, 0, 0), (ImageClass(0, "1.0"), ImageClass(1, "007"))),
        # The number of a class counts where no name reads so, and the class's own name is no number.
        (["nan", 2, 3], (1, 2, 0), (ImageClass(0, "3"), ImageClass(1, "nan"), ImageClass(2, "rose"))),
        # Names that differ in capital letters alone are different.
        (["rose", "Rose"], (1, 0), (ImageClass(0, "Rose"), ImageClass(1, "rose"))),
        # Spaces around a name and the two forms of an umlaut cannot be seen.
        ([" Bl\u00fcte"], (0,), (ImageClass(0, "Blu\u0308te"), ImageClass(1, "rose"))),
    ],
)
def test_classes_are_found_by_name_or_number(asked, labels, classes):
    assert labels_of(asked, classes) == labels


@pytest.mark.parametrize(
    ("asked", "classes", "message"),
    [
        (["sunflwer"], CLASSES, r"unknown class 'sunflwer'; did you mean sunflower \(54\)\?"),
        (["Sunflowers"], CLASSES, r"unknown class 'Sunflowers'; did you mean sunflower \(54\)"),
        ([1], CLASSES, r"class 1; the model knows globe thistle \(10\), sunflower \(54\), passion flower \(77\)$"),
        (["1"], CLASSES, r"unknown class '1'; the model knows globe thistle \(10\)"),
        (["sunflower", "zebra"], CLASSES, r"unknown class 'zebra'; the model knows globe thistle \(10\)"),
        ([99], [ImageClass(i, f"{i}th") for i in range(20)], r"knows 0th \(0\), .*, 7th \(7\) and 12 more$"),
        ([0], FOLDERS, r"^unknown class 0; the model knows 1, 10, 100, .* and 94 more$"),
        ([102, 103], FOLDERS, "^unknown class 103; "),
        (["ROSE"], [ImageClass(0, "Rose"), ImageClass(1, "rose")], "could be 'Rose' or 'rose'; write the name exactly"),
        ([7], [ImageClass(0, "07"), ImageClass(1, "007")], "class '7' could be '07' or '007'"),
        ([True], FOLDERS, r"must be a name or a whole number, got True \(bool\); write a name in quotes"),
        ("rose", CLASSES, "classes must be a list of at least one name or number, got 'rose'"),
        ([], CLASSES, r"classes must be a list of at least one name or number, got \[\]"),
        (["sunflower"], (), r"the model knows no classes, got \['sunflower'\]; ask for none, or train"),
    ],
)
def test_an_unknown_class_is_an_error_that_suggests(asked, classes, message):
    with pytest.raises(ValueError, match=message):
        labels_of(asked, classes)


def test_images_have_the_labels_in_turn():
    labels = labels_in_turn((5, 2, 7), range(2, 9))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [7, 5, 2, 7, 5, 2, 7]
    assert labels_in_turn((5, 2, 7), [4]).tolist() == [2]
