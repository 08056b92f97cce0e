"""The only conversion between bytes in [0, 255] and the model's [-1, 1]; grids, PNG files and animations of images.

A picture is a numpy array, uint8, of shape (height, width, 3).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.checks import describe, require_images, require_pixels
from ddpm.shapes import Float, UInt8

Pixels = UInt8[Tensor, "batch channels height width"]
Picture = UInt8[np.ndarray, "_height _width 3"]

_SHOWN_CHANNELS = (1, 3)
_GAP = 2
_MIN_SHOWN_PIXELS = 96
_FONT_SIZE = 16


class NotANumberError(ValueError):
    """An image has pixels that are not numbers."""


def to_model_range(pixels: Pixels) -> Float[Tensor, "batch channels height width"]:
    """Map bytes 0 … 255 to float32 -1 … 1.

    Raises:
        ValueError: these are no images as bytes.
    """
    require_pixels(pixels, "pixels")
    return pixels.to(torch.float32).div(127.5).sub(1.0)


def to_pixels(x: Float[Tensor, "batch channels height width"]) -> Pixels:
    """Map -1 … 1 to bytes 0 … 255: rounded, and clipped beyond that range.

    Raises:
        ValueError: these are no images as floats.
        NotANumberError: a value is not a number.
    """
    require_images(x, "x")
    if bool(x.isnan().any()):
        raise NotANumberError(
            f"x must be numbers, got {describe(x)}: the network overflows or has broken weights; take "
            "others, or precision float32"
        )
    return x.float().add(1.0).mul(127.5).round().clamp(0.0, 255.0).to(torch.uint8)


def grid(pixels: Pixels, columns: int | None = None) -> Picture:
    """Lay images out row by row, two pixels apart, in colour.

    Args:
        pixels: at least one image.
        columns: number of columns; None makes the grid as square as the number of images allows.

    Raises:
        ValueError: there are no images, or they are not grey or coloured bytes.
    """
    require_pixels(pixels, "pixels", _SHOWN_CHANNELS)
    if len(pixels) == 0:
        raise ValueError("a grid needs at least one image")
    images = pixels.permute(0, 2, 3, 1).cpu().numpy()
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    height, width = (size + _GAP for size in images.shape[1:3])
    picture = np.full((math.ceil(len(images) / columns) * height + _GAP, columns * width + _GAP, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height + _GAP, number % columns * width + _GAP
        picture[top : top + height - _GAP, left : left + width - _GAP] = image
    return picture


def class_grid(pixels: Pixels, names: Sequence[str], scale: int = 1) -> Picture:
    """Lay images whose classes come in turn out in one row per class, with the name of the class to the left.

    All rows have the same length, so the last images may be left out. Many short rows stand in blocks side by side.

    Args:
        pixels: at least one image; image i is of class i mod len(names).
        names: names of the classes.
        scale: each pixel is enlarged to `scale` x `scale`.

    Raises:
        ValueError: there are no images or no names.
    """
    if len(pixels) == 0 or not names:
        raise ValueError(f"a grid by class needs images and names, got {len(pixels)} and {len(names)}")
    num_rows = min(len(names), len(pixels))
    rows = [pixels[row :: len(names)][: len(pixels) // num_rows] for row in range(num_rows)]
    grids = [enlarge(grid(row, columns=len(row)), scale) for row in rows]
    captions = _draw_captions(names[:num_rows], grids[0].shape[0])
    lines = [np.concatenate(pair, axis=1) for pair in zip(captions, grids, strict=True)]
    num_blocks = max(1, round(math.sqrt(num_rows * lines[0].shape[0] / lines[0].shape[1])))
    height = math.ceil(num_rows / num_blocks)
    blank = np.full_like(lines[0], 255)
    lines += [blank] * (-num_rows % height)
    blocks = [np.concatenate(lines[start : start + height]) for start in range(0, len(lines), height)]
    return np.concatenate(blocks, axis=1)


def sample_grid(pixels: Pixels, names: Sequence[str]) -> Picture:
    """Lay samples out by `grid`; with names of classes by `class_grid`, enlarged so that the names can be read."""
    return class_grid(pixels, names, enlargement(pixels.shape[-1])) if names else grid(pixels)


def enlargement(image_size: int) -> int:
    """Return the scale that shows small images with at least 96 pixels a side."""
    return max(1, -(-_MIN_SHOWN_PIXELS // image_size))


def enlarge(
    picture: UInt8[np.ndarray, "_height _width channels"], scale: int
) -> UInt8[np.ndarray, "_larger_height _larger_width channels"]:
    """Repeat each pixel `scale` x `scale` times.

    Raises:
        ValueError: the picture is no array of bytes of shape (height, width, channels).
    """
    if not (isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3):
        raise ValueError(
            f"picture must be a NumPy array of uint8, shape (height, width, channels), got {describe(picture)}; "
            "`grid` makes one of images"
        )
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def save_png(picture: UInt8[np.ndarray, "_height _width _channels"], path: Path, scale: int = 1) -> None:
    """Write an image of one or three channels as PNG, each pixel enlarged to `scale` x `scale`."""
    # Pillow is needed for files, not to train or sample: importing it here keeps the library usable without it.
    from PIL import Image

    enlarged = enlarge(picture, scale)
    if enlarged.shape[2] == 1:
        enlarged = enlarged[:, :, 0]
    Image.fromarray(enlarged).save(path, format="PNG", optimize=True)


def save_animation(
    frames: Sequence[Picture], path: Path, seconds: float = 4.0, hold_seconds: float = 1.5, scale: int = 1
) -> None:
    """Write pictures as an animated WebP that repeats for ever and holds its last frame.

    Args:
        frames: at least one picture, all of one shape.
        path: file to write.
        seconds: duration of all frames together.
        hold_seconds: additional duration of the last frame.
        scale: each pixel is enlarged to `scale` x `scale`.

    Raises:
        ValueError: there are no frames.
    """
    from PIL import Image  # here, as in `save_png`

    if not frames:
        raise ValueError("an animation needs at least one frame")
    milliseconds = [max(20, round(1000 * seconds / len(frames)))] * len(frames)
    milliseconds[-1] += round(1000 * hold_seconds)
    first, *rest = [Image.fromarray(enlarge(frame, scale)) for frame in frames]
    first.save(path, format="WEBP", save_all=True, append_images=rest, duration=milliseconds, loop=0, quality=85)


def _draw_captions(names: Sequence[str], height: int) -> list[np.ndarray]:
    """Draw the names in black on white, as pictures of this height and of one width."""
    from PIL import Image, ImageDraw, ImageFont  # here, as in `save_png`

    font = ImageFont.load_default(size=min(_FONT_SIZE, height))
    width = max(math.ceil(font.getlength(name)) for name in names) + _FONT_SIZE
    captions = []
    for name in names:
        picture = Image.new("RGB", (width, height), "white")
        ImageDraw.Draw(picture).text((_FONT_SIZE // 2, height // 2), name, "black", font, anchor="lm")
        captions.append(np.asarray(picture))
    return captions
