"""Drawn flowers: the same bytes everywhere, images that show their class, and a dataset of them."""

import hashlib

import numpy as np
import pytest

from stages.datasets import DATASETS
from stages.datasets.synthetic.draws import PETAL_COUNTS, Draws
from stages.datasets.synthetic.flowers import draw_pose, generate
from tests.stages.datasets.files import read_files

FLOWERS = DATASETS["synthetic_flowers"]


@pytest.mark.parametrize(
    ("image_size", "variety", "expected"),
    [
        (32, 1.0, "103c81c3c7977548cc5fce21393d96906fcdc14030a5879bcea0dca509c22664"),
        (64, 1.0, "288fc037dc459102b404dce2472e2610991a0a08414c87b796e06351fa5548b6"),
        (24, 0.2, "b6153ac6f3b0081f4ee7533bc89d0d89da9df94ac65a8e618284d401c8247c66"),
    ],
)
def test_bytes_are_pinned(image_size, variety, expected):
    images, labels = generate(40, image_size, seed=0, variety=variety)
    assert hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest() == expected


def test_more_variety_makes_images_differ_more():
    spreads = [generate(400, 16, seed=0, variety=variety)[0].std(axis=0).mean() for variety in (0.0, 0.2, 1.0)]
    assert spreads == sorted(spreads) and spreads[0] < spreads[2] - 5


def test_an_image_does_not_depend_on_the_range_it_is_drawn_in():
    images, labels = generate(83, 32, seed=3)
    assert images.shape == (83, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (83,) and labels.dtype == np.int64
    for first, last in [(0, 0), (0, 1), (1, 6), (6, 40), (40, 83)]:
        part, part_labels = generate(last - first, 32, seed=3, first=first)
        np.testing.assert_array_equal(part, images[first:last])
        np.testing.assert_array_equal(part_labels, labels[first:last])


def test_another_size_shows_the_same_flower_with_smooth_edges():
    small, small_labels = generate(10, 32, seed=4)
    large, large_labels = generate(10, 96, seed=4)
    averaged = large.reshape(10, 32, 3, 32, 3, 3).mean(axis=(2, 4))
    np.testing.assert_array_equal(small_labels, large_labels)
    # Sampling one pixel in nine instead would differ three times as much at the edges.
    assert np.abs(averaged - small).mean() < 2.0 and np.percentile(np.abs(averaged - small), 99) < 20


def test_seeds_and_images_differ():
    images = np.concatenate([generate(200, 16, seed)[0] for seed in (0, 1)])
    assert len({image.tobytes() for image in images}) == 400


@pytest.mark.parametrize("first", [0, 5, 1_000_000])
def test_every_block_of_five_has_every_class_in_mixed_order(first):
    _, labels = generate(100, 16, seed=0, first=first)
    blocks = labels.reshape(20, 5)
    np.testing.assert_array_equal(np.sort(blocks, axis=1), [PETAL_COUNTS] * 20)
    assert all(len(set(column)) > 1 for column in blocks.T.tolist())


def sample_ring(image, pose, i, reach):
    """RGB (240, 3) of the pixels on a ring around the flower's centre at a fraction of its radius, tilt included."""
    angles = np.arange(240) * 2.0 * np.pi / 240
    axis = np.array([pose.tilt_axis[0][i, 0, 0], pose.tilt_axis[1][i, 0, 0]])
    points = reach * pose.radius[i, 0, 0] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = points - (1.0 - pose.tilt[i, 0, 0]) * (points @ axis)[:, None] * axis
    points = points + [pose.centre_x[i, 0, 0], pose.centre_y[i, 0, 0]]
    columns, rows = np.clip((points * len(image)).astype(int), 0, len(image) - 1).T
    return image[rows, columns].astype(np.float64)


def count_petals(image, pose, i):
    """The strongest angular frequency, 3 to 11, of the colours on rings through the outer half of the petals."""
    power = np.zeros(9)
    for reach in (0.65, 0.75, 0.85):
        colours = sample_ring(image, pose, i, reach)
        spectrum = np.fft.rfft(colours - colours.mean(axis=0), axis=0)
        power += (np.abs(spectrum) ** 2).sum(axis=1)[3:12]
    return 3 + int(power.argmax())


@pytest.mark.parametrize("image_size", [32, 64])
def test_petals_can_be_counted(image_size):
    images, labels = generate(300, image_size, seed=11)
    pose = draw_pose(Draws(11, 0, 300))
    counts = [count_petals(image, pose, i) for i, image in enumerate(images)]
    assert np.mean(counts == labels) >= 0.99


def test_the_flower_fills_the_image_and_stays_inside():
    pose = draw_pose(Draws(0, 0, 2000))
    assert pose.radius.min() > 0.30 and pose.radius.max() < 0.46
    for centre in (pose.centre_x, pose.centre_y):
        assert (centre - 1.04 * pose.radius).min() > -0.05 and (centre + 1.04 * pose.radius).max() < 1.05


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
