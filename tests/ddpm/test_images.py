"""Bytes and the model's range; grids, PNG files, animations."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid

from ddpm.images import class_grid, enlargement, grid, save_animation, save_png, to_model_range, to_pixels


def coloured_images(count, height=2, width=3):
    """Image i is 10 (i + 1) everywhere."""
    return (10 * torch.arange(1, count + 1, dtype=torch.uint8)).reshape(-1, 1, 1, 1).repeat(1, 3, height, width)


def test_all_256_values_go_to_the_model_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = to_model_range(pixels)
    assert x.dtype == torch.float32
    assert float(x.min()) == -1.0 and float(x.max()) == 1.0
    expected = [value / 127.5 - 1.0 for value in range(256)]
    torch.testing.assert_close(x.flatten(), torch.tensor(expected), rtol=0, atol=1e-7)
    assert torch.equal(to_pixels(x), pixels)


@pytest.mark.parametrize(
    ("values", "dtype", "pixels"),
    [
        # 127.5 rounds to the even 128.
        ([-7.0, -1.0, -0.999, 0.0, 0.003, 0.997, 1.0, 7.0], torch.float32, [0, 0, 0, 128, 128, 255, 255, 255]),
        ([100.4 / 127.5 - 1.0, 100.6 / 127.5 - 1.0], torch.float32, [100, 101]),
        ([0.5], torch.bfloat16, [191]),
    ],
)
def test_pixels_are_rounded_and_clipped(values, dtype, pixels):
    assert to_pixels(torch.tensor(values, dtype=dtype).reshape(1, 1, 1, -1)).flatten().tolist() == pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("columns", [None, 1, 3, 4, 20])
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_a_grid_equals_that_of_torchvision(count, columns, channels):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, channels, 6, 4), dtype=torch.uint8, generator=generator)
    expected = make_grid(pixels, nrow=columns or math.ceil(count**0.5), padding=2, pad_value=255)
    if count == 1:  # which torchvision leaves without a border
        expected = torch.nn.functional.pad(expected, (2, 2, 2, 2), value=255)
    picture = grid(pixels, columns)
    assert isinstance(picture, np.ndarray) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, expected.permute(1, 2, 0))


def test_a_grid_by_class_has_a_row_for_each_class_in_turn():
    # Seven images of three classes: image 6 would make the first row longer.
    drawn = class_grid(coloured_images(7, 30, 20), ["rose", "tulip", "lily"], scale=2)
    assert drawn.shape[0] == 3 * 2 * 34
    width = 2 * (2 + 2 * 22)
    for row, shown in enumerate([(0, 3), (1, 4), (2, 5)]):
        expected = grid(coloured_images(7, 30, 20)[list(shown)], columns=2)
        line = drawn[row * 68 : (row + 1) * 68]
        np.testing.assert_array_equal(line[::2, -width::2], expected)
        np.testing.assert_array_equal(line[1::2, 1 - width :: 2], expected)


def test_the_name_of_a_class_stands_to_the_left_of_its_row():
    names = ["i", "a long name"]
    drawn = class_grid(coloured_images(4, 30, 20), names)
    captions = drawn[:, : -(2 + 2 * 22)]
    short, long = (np.flatnonzero((line != 255).any(axis=(0, 2))) for line in np.split(captions, 2))
    # Both begin at the same margin; of different names there is different ink.
    assert abs(short[0] - long[0]) <= 2 and short[-1] - short[0] < 8 and long[-1] - long[0] > 50
    swapped = class_grid(coloured_images(4, 30, 20), names[::-1])[:, : -(2 + 2 * 22)]
    np.testing.assert_array_equal(np.concatenate(np.split(swapped, 2)[::-1]), captions)


def test_fewer_images_than_classes_show_the_first_classes():
    drawn = class_grid(coloured_images(2, 30, 20), ["rose", "tulip", "lily"])
    assert drawn.shape[0] == 2 * 34
    assert drawn[15, -10].tolist() == [10] * 3 and drawn[34 + 15, -10].tolist() == [20] * 3


def test_many_short_rows_stand_in_blocks_side_by_side():
    names = [f"class {number}" for number in range(25)]
    drawn = class_grid(coloured_images(25, 30, 20), names)
    height, width = drawn.shape[:2]
    assert 0.5 < height / width < 2.0
    num_rows = height // 34
    num_blocks = -(-25 // num_rows)
    block = width // num_blocks
    for number in range(25):
        left, top = number // num_rows * block, number % num_rows * 34
        assert drawn[top + 15, left + block - 10].tolist() == [10 * (number + 1)] * 3
    # What is left over is white.
    assert (drawn[25 % num_rows * 34 :, -block:] == 255).all() and 25 % num_rows


@pytest.mark.parametrize(("image_size", "scale"), [(16, 6), (24, 4), (64, 2), (96, 1), (100, 1)])
def test_small_images_are_enlarged_to_96_pixels(image_size, scale):
    assert enlargement(image_size) == scale


@pytest.mark.parametrize(("scale", "size"), [(None, (3, 2)), (4, (12, 8))])
def test_a_png_holds_each_pixel_enlarged(tmp_path, scale, size):
    picture = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    save_png(picture, tmp_path / "picture.png", *([scale] if scale else []))
    with Image.open(tmp_path / "picture.png") as read:
        assert read.format == "PNG" and read.mode == "RGB" and read.size == size
        np.testing.assert_array_equal(read, np.kron(picture, np.ones((scale or 1, scale or 1, 1), np.uint8)))


def test_an_animation_shows_all_frames_and_holds_the_last(tmp_path):
    frames = [np.full((8, 12, 3), 60 * i, np.uint8) for i in range(4)]
    save_animation(frames, tmp_path / "frames.webp", seconds=2.0, hold_seconds=1.0, scale=2)
    with Image.open(tmp_path / "frames.webp") as read:
        assert read.format == "WEBP" and read.n_frames == 4 and read.size == (24, 16)
        assert read.info["loop"] == 0  # for ever
        durations, colours = [], []
        for number in range(4):
            read.seek(number)
            read.load()
            durations.append(read.info["duration"])
            colours.append(float(np.asarray(read.convert("L")).mean()))
    assert durations == [500, 500, 500, 1500]
    assert colours == pytest.approx([0, 60, 120, 180], abs=3)  # WebP is lossy


def test_many_frames_stay_long_enough_for_browsers(tmp_path):
    # Browsers slow frames of less than 20 ms down to 100 ms.
    frames = [np.full((2, 2, 3), 50 * i, np.uint8) for i in range(5)]
    save_animation(frames, tmp_path / "frames.webp", seconds=0.01, hold_seconds=0.0)
    with Image.open(tmp_path / "frames.webp") as read:
        read.seek(4)
        read.load()
        assert read.info["duration"] == 20


def test_pictures_of_nothing_are_an_error(tmp_path):
    nothing = torch.zeros(0, 3, 30, 20, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least one image"):
        grid(nothing)
    with pytest.raises(ValueError, match="needs images and names, got 0 and 1"):
        class_grid(nothing, ["rose"])
    with pytest.raises(ValueError, match="needs images and names, got 3 and 0"):
        class_grid(coloured_images(3), [])
    with pytest.raises(ValueError, match="at least one frame"):
        save_animation([], tmp_path / "frames.webp")
