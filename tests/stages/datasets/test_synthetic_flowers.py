"""Drawn flowers as a dataset: raw arrays, the same bytes each time."""

import numpy as np
import pytest

from stages.datasets import DATASETS
from stages.datasets import synthetic_flowers as module
from stages.datasets.synthetic.flowers import generate


@pytest.fixture
def fetched(tmp_path, make_params):
    """Fetches the dataset of the small experiment, with changes, into a new folder."""

    def fetch(name="data", changes=None):
        target = tmp_path / name
        target.mkdir()
        DATASETS["synthetic_flowers"].fetch(make_params(changes).download, target, previous=tmp_path / "none")
        return target

    return fetch


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_fetching_again_gives_the_same_bytes(fetched):
    first = contents(fetched("first"))
    assert contents(fetched("second")) == first
    assert sorted(first) == ["images.npy", "petals.npy"]
    assert contents(fetched("other", {"download.synthetic.seed": 1})) != first


def test_the_images_are_those_that_were_drawn(fetched):
    folder = fetched()
    dataset = DATASETS["synthetic_flowers"]
    images = list(dataset.images(folder))
    assert dataset.count(folder) == len(images) == 24
    pixels, petals = np.load(folder / "images.npy"), np.load(folder / "petals.npy")
    assert pixels.shape == (24, 16, 16, 3) and pixels.dtype == np.uint8
    for index, image in enumerate(images):
        assert image.number == index + 1 and image.name == f"image {index + 1}"
        np.testing.assert_array_equal(image.content, pixels[index])
        assert image.class_number == petals[index] and image.class_name == f"{petals[index]} petals"
        assert image.split is None
    assert len({image.class_name for image in images}) > 1


def test_what_is_fetched_is_what_is_drawn(fetched):
    _, petals = generate(24, 16, seed=5)
    folder = fetched(changes={"download.synthetic.seed": 5})
    np.testing.assert_array_equal(np.load(folder / "petals.npy"), petals)
    assert len({image.tobytes() for image in np.load(folder / "images.npy")}) == 24


def test_drawing_in_chunks_changes_nothing(fetched, monkeypatch):
    whole = contents(fetched("whole"))
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert contents(fetched("chunked")) == whole
