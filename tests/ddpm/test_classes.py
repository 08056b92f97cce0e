"""Classes are asked for by name or number, and images have them in turn."""

import pytest
import torch

from ddpm.classes import ImageClass, labels_of
from ddpm.guidance import labels_in_turn

# In the order of their labels; numbers neither follow each other nor start at 0.
CLASSES = (ImageClass(10, "globe thistle"), ImageClass(54, "sunflower"), ImageClass(77, "passion flower"))


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
        # A name that is a number, such as of a sub-folder, is a name first.
        (["1", 1, "0"], (0, 1, 2), (ImageClass(0, "1"), ImageClass(1, "2"), ImageClass(2, "0"))),
        # Names that differ in capital letters alone are different.
        (["rose", "Rose"], (1, 0), (ImageClass(0, "Rose"), ImageClass(1, "rose"))),
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
