"""Synthetic flowers: the same bytes everywhere, and images that show their class."""

import ast
import hashlib
from pathlib import Path

import numpy as np
import pytest

from stages.datasets.synthetic import colours, flowers, shapes
from stages.datasets.synthetic.flowers import PETAL_COUNTS, generate

SOURCES = [Path(module.__file__) for module in (flowers, shapes, colours)]
# What numpy computes with elementwise loops that IEEE 754 rounds exactly, or without floating point arithmetic.
EXACT_NUMPY = {
    "abs", "arange", "argsort", "array", "broadcast_shapes", "clip", "copyto", "empty", "float64", "floor", "full",
    "int64", "maximum", "minimum", "moveaxis", "random", "sqrt", "stack", "uint64", "uint8", "zeros_like",
}  # fmt: skip
REDUCTIONS_AND_PRODUCTS = {"sum", "mean", "std", "var", "dot", "prod", "cumsum", "default_rng", "Generator"}


def digest(*arrays: np.ndarray) -> str:
    little_endian = (array.astype(array.dtype.newbyteorder("<")) for array in arrays)
    return hashlib.sha256(b"".join(array.tobytes() for array in little_endian)).hexdigest()


@pytest.mark.parametrize(
    ("image_size", "variety", "expected"),
    [
        (32, 1.0, "103c81c3c7977548cc5fce21393d96906fcdc14030a5879bcea0dca509c22664"),
        (64, 1.0, "288fc037dc459102b404dce2472e2610991a0a08414c87b796e06351fa5548b6"),
        (24, 0.2, "b6153ac6f3b0081f4ee7533bc89d0d89da9df94ac65a8e618284d401c8247c66"),
    ],
)
def test_bytes_are_pinned(image_size, variety, expected):
    assert digest(*generate(40, image_size, seed=0, variety=variety)) == expected


def test_variety_spreads_the_poses():
    spreads = []
    for variety in (0.0, 0.2, 1.0):
        pose = flowers._draw_pose(flowers._Draws(0, 0, 500, variety))
        numbers = [pose.centre_x, pose.centre_y, pose.radius, *pose.turn, *pose.tilt_axis, pose.tilt]
        spreads.append([np.ptp(number) for number in numbers])
    none, some, full = spreads
    assert max(none) == 0.0
    assert all(0.0 < a < b for a, b in zip(some, full, strict=True))


def test_variety_spreads_the_colours():
    plain, colourful = (generate(400, 32, seed=0, variety=variety)[0] for variety in (0.0, 1.0))
    assert plain[:, 0, 0].std(axis=0).mean() < colourful[:, 0, 0].std(axis=0).mean()


@pytest.mark.parametrize("variety", [-0.1, 1.1, float("nan")])
def test_impossible_variety_is_refused(variety):
    with pytest.raises(ValueError, match="variety must be from 0 to 1"):
        generate(1, 32, seed=0, variety=variety)


def test_shapes_and_types():
    images, labels = generate(7, 32, seed=1)
    assert images.shape == (7, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (7,) and labels.dtype == np.int64


@pytest.mark.parametrize("first", [0, 3, 5])
def test_no_images(first):
    images, labels = generate(0, 32, seed=1, first=first)
    assert images.shape == (0, 32, 32, 3) and labels.shape == (0,)


def test_an_image_does_not_depend_on_the_range_it_is_drawn_in():
    images, labels = generate(83, 32, seed=3)
    for first, last in [(0, 1), (1, 6), (6, 40), (40, 83)]:
        part, part_labels = generate(last - first, 32, seed=3, first=first)
        np.testing.assert_array_equal(part, images[first:last])
        np.testing.assert_array_equal(part_labels, labels[first:last])


def test_an_image_does_not_depend_on_the_chunk_size(monkeypatch):
    images, _ = generate(23, 32, seed=3)
    monkeypatch.setattr(flowers, "_PIXELS_PER_CHUNK", 5 * 32 * 32)
    np.testing.assert_array_equal(generate(23, 32, seed=3)[0], images)


def test_another_size_shows_the_same_flower():
    small, small_labels = generate(10, 32, seed=4)
    large, large_labels = generate(10, 96, seed=4)
    averaged = large.reshape(10, 32, 3, 32, 3, 3).mean(axis=(2, 4))
    np.testing.assert_array_equal(small_labels, large_labels)
    assert np.abs(averaged - small).mean() < 4.0


def test_seeds_and_images_differ():
    images, _ = generate(200, 16, seed=0)
    others, _ = generate(200, 16, seed=1)
    assert len({image.tobytes() for image in np.concatenate([images, others])}) == 400


@pytest.mark.parametrize("first", [0, 5, 1_000_000])
def test_every_block_of_five_has_every_class_in_mixed_order(first):
    _, labels = generate(100, 16, seed=0, first=first)
    blocks = labels.reshape(20, 5)
    np.testing.assert_array_equal(np.sort(blocks, axis=1), [PETAL_COUNTS] * 20)
    assert all(len(set(column)) > 1 for column in blocks.T.tolist())


def ring_colours(image: np.ndarray, pose: shapes.Pose, i: int, reach: float) -> np.ndarray:
    """RGB (240, 3) of the nearest pixels around the flower's centre at a fraction of its radius, tilt included."""
    angles = np.arange(240) * 2.0 * np.pi / 240
    axis = np.array([pose.tilt_axis[0][i, 0, 0], pose.tilt_axis[1][i, 0, 0]])
    points = reach * pose.radius[i, 0, 0] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = points - (1.0 - pose.tilt[i, 0, 0]) * (points @ axis)[:, None] * axis
    points = points + [pose.centre_x[i, 0, 0], pose.centre_y[i, 0, 0]]
    columns, rows = np.clip((points * len(image)).astype(int), 0, len(image) - 1).T
    return image[rows, columns].astype(np.float64)


def counted_petals(image: np.ndarray, pose: shapes.Pose, i: int) -> int:
    """The strongest angular frequency, 3 to 11, of the colours on rings through the outer half of the petals."""
    power = np.zeros(9)
    for reach in (0.65, 0.75, 0.85):
        colours = ring_colours(image, pose, i, reach)
        spectrum = np.fft.rfft(colours - colours.mean(axis=0), axis=0)
        power += (np.abs(spectrum) ** 2).sum(axis=1)[3:12]
    return 3 + int(power.argmax())


@pytest.mark.parametrize(("image_size", "least_right"), [(32, 0.99), (64, 0.99)])
def test_petals_can_be_counted(image_size, least_right):
    num_images = 300
    images, labels = generate(num_images, image_size, seed=11)
    pose = flowers._draw_pose(flowers._Draws(11, 0, num_images))
    counts = [counted_petals(image, pose, i) for i, image in enumerate(images)]
    assert np.mean(counts == labels) >= least_right


def test_the_flower_fills_the_image_and_stays_inside():
    pose = flowers._draw_pose(flowers._Draws(0, 0, 2000))
    assert pose.radius.min() > 0.30 and pose.radius.max() < 0.46
    for centre in (pose.centre_x, pose.centre_y):
        assert (centre - 1.04 * pose.radius).min() > -0.05 and (centre + 1.04 * pose.radius).max() < 1.05


def test_axes_are_unit_vectors_one_for_each_petal():
    petals = np.array(PETAL_COUNTS)
    axes = np.array(shapes.petal_axes(petals, flowers._Draws(5, 0, 5).direction()))[..., 0, 0]
    lengths = np.sqrt((axes**2).sum(axis=1))
    np.testing.assert_allclose(lengths, np.arange(8)[:, None] < petals, atol=1e-12)
    np.testing.assert_allclose(axes.sum(axis=0), 0.0, atol=1e-12)


def petal_on_a_grid(size: int) -> np.ndarray:
    """Signed distances (size, size) to one petal that points to the right."""
    centres = (np.arange(size) + 0.5) / size
    along, across = centres[None, None, :] - 0.1, centres[None, :, None] - 0.5
    length, width = np.full((1, 1, 1), 0.8), np.full((1, 1, 1), 0.2)
    return shapes.petal_distance(along, across, length, width, 0.3, 0.2, 0.0)[0]


def test_edges_are_anti_aliased():
    size, fine = 64, 8
    inside = shapes.coverage(petal_on_a_grid(size), 1 / size)
    assert inside.min() == 0.0 and inside.max() == 1.0
    for column in inside.T[16:48]:  # the petal's sides: one or two grey pixels on each
        assert 1 <= ((column > 0.0) & (column < 1.0))[: size // 2].sum() <= 3
    supersampled = (petal_on_a_grid(size * fine) > 0.0).reshape(size, fine, size, fine).mean(axis=(1, 3))
    assert np.abs(inside - supersampled).max() < 0.3


def test_images_are_smooth_and_colourful():
    images, _ = generate(300, 64, seed=2)
    steps = np.abs(np.diff(images.astype(int), axis=2))
    assert np.median(steps) <= 2  # graded, without texture noise
    assert np.std(images.reshape(300, -1, 3).mean(axis=1), axis=0).min() > 20  # images differ in colour
    assert images.std(axis=(1, 2)).max(axis=1).min() > 10  # no image is flat


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_arithmetic_is_exact_on_every_machine(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            of_numpy = isinstance(node.value, ast.Name) and node.value.id == "np"
            assert not of_numpy or node.attr in EXACT_NUMPY, f"np.{node.attr} on line {node.lineno}"
            assert node.attr not in REDUCTIONS_AND_PRODUCTS, f".{node.attr} on line {node.lineno}"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            both_literal = isinstance(node.left, ast.Constant) and isinstance(node.right, ast.Constant)
            assert both_literal, f"** on line {node.lineno}"
        assert not isinstance(node, ast.MatMult), "matrix product"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            allowed = {"numpy", "typing", "stages"}
            assert {name.split(".")[0] for name in names} <= allowed, f"import on line {node.lineno}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": -1}, "num_images must be at least 0, got -1"),
        ({"image_size": 15}, "image_size must be from 16 to 1024, got 15"),
        ({"image_size": 1025}, "image_size must be from 16 to 1024, got 1025"),
        ({"seed": -1}, "seed must be from 0 to 18446744073709551615, got -1"),
        ({"seed": 2**64}, "seed must be from 0"),
        ({"first": -5}, "first must be at least 0, got -5"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**{"num_images": 1, "image_size": 32, "seed": 0, **arguments})
