"""Drawn flowers as a dataset: raw arrays, the same bytes each time."""

import numpy as np

from stages.datasets import DATASETS
from stages.datasets.synthetic.flowers import generate
from tests.stages.datasets.files import read_files

FLOWERS = DATASETS["synthetic_flowers"]


def test_the_images_are_those_that_are_drawn(fetch):
    # More than are drawn at once.
    drawing = {"num_images": 600, "image_size": 16, "seed": 5, "variety": 0.5}
    changes = {f"download.synthetic.{name}": value for name, value in drawing.items()}
    folder = fetch("synthetic_flowers", changes)
    assert sorted(read_files(folder)) == ["images.npy", "petals.npy"]
    pixels, petals = generate(**drawing)
    images = list(FLOWERS.images(folder))
    assert FLOWERS.count(folder) == len(images) == 600
    np.testing.assert_array_equal([image.content for image in images], pixels)
    assert [image.class_number for image in images] == petals.tolist()
    assert [image.class_name for image in images] == [f"{count} petals" for count in petals]
    assert [(image.number, image.name) for image in images] == [(i, f"image {i}") for i in range(1, 601)]
    assert all(image.split is None for image in images)
