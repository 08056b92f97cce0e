"""The only conversion between bytes in [0, 255] and the model's [-1, 1]; grids and animations of images."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.shapes import Float, UInt8

Pixels = UInt8[Tensor, "batch channels height width"]

_GAP = 2
_SHOWN_PIXELS = 96
_FONT_SIZE = 16


def to_model_range(pixels: Pixels) -> Float[Tensor, "batch channels height width"]:
    """Bytes 0 … 255 to float32 -1 … 1."""
    return pixels.to(torch.float32).div(127.5).sub(1.0)


def to_pixels(x: Float[Tensor, "batch channels height width"]) -> Pixels:
    """-1 … 1 to bytes 0 … 255, rounded; what lies outside is clipped."""
    return x.float().add(1.0).mul(127.5).round().clamp(0.0, 255.0).to(torch.uint8)


def grid(pixels: Pixels, columns: int | None = None) -> UInt8[Tensor, "grid_height grid_width 3"]:
    """Images side by side, row by row, two pixels apart, in colour.

    Args:
        pixels: at least one image.
        columns: of the grid; left out, as square as the number allows.

    Raises:
        ValueError: there are no images.
    """
    if len(pixels) == 0:
        raise ValueError("a grid needs at least one image")
    columns = min(columns or math.ceil(math.sqrt(len(pixels))), len(pixels))
    height, width = (size + _GAP for size in pixels.shape[2:])
    drawn = pixels.new_full((math.ceil(len(pixels) / columns) * height + _GAP, columns * width + _GAP, 3), 255)
    for number, image in enumerate(pixels):
        top, left = number // columns * height + _GAP, number % columns * width + _GAP
        drawn[top : top + height - _GAP, left : left + width - _GAP] = image.permute(1, 2, 0)
    return drawn


def class_grid(pixels: Pixels, names: Sequence[str], scale: int = 1) -> UInt8[Tensor, "grid_height grid_width 3"]:
    """Images whose classes come in turn, a row for each class, with its name to the left.

    Rows are equally long, so that the last images may be left out. Many short rows stand in blocks side by side.

    Args:
        pixels: at least one; image i is of class i mod len(names).
        names: of the classes.
        scale: each pixel is enlarged to `scale` x `scale`.

    Raises:
        ValueError: there are no images or no names.
    """
    if len(pixels) == 0 or not names:
        raise ValueError(f"a grid by class needs images and names, got {len(pixels)} and {len(names)}")
    num_rows = min(len(names), len(pixels))
    rows = [pixels[row :: len(names)][: len(pixels) // num_rows] for row in range(num_rows)]
    drawn = [_enlarged(grid(row, columns=len(row)), scale) for row in rows]
    captions = _captions(names[:num_rows], drawn[0].shape[0])
    lines = [np.concatenate(pair, axis=1) for pair in zip(captions, drawn, strict=True)]
    num_blocks = max(1, round(math.sqrt(num_rows * lines[0].shape[0] / lines[0].shape[1])))
    height = math.ceil(num_rows / num_blocks)
    blank = np.full_like(lines[0], 255)
    lines += [blank] * (-num_rows % height)
    blocks = [np.concatenate(lines[start : start + height]) for start in range(0, len(lines), height)]
    return torch.from_numpy(np.concatenate(blocks, axis=1))


def enlargement(image_size: int) -> int:
    """The scale at which small images are shown, for the eye: at least 96 pixels."""
    return max(1, -(-_SHOWN_PIXELS // image_size))


def save_png(image: UInt8[Tensor, "height width channels"], path: Path, scale: int = 1) -> None:
    """Write an image as PNG, each pixel enlarged to `scale` x `scale`."""
    # Pillow is needed for files, not to train or sample: importing it here keeps the library usable without.
    from PIL import Image

    Image.fromarray(_enlarged(image, scale)).save(path, format="PNG", optimize=True)


def save_animation(
    frames: Sequence[UInt8[Tensor, "height width channels"]],
    path: Path,
    seconds: float = 4.0,
    hold_seconds: float = 1.5,
    scale: int = 1,
) -> None:
    """Write frames as an animated WebP that repeats for ever and holds its last frame.

    Args:
        frames: at least one, all of one shape.
        path: of the file.
        seconds: of all frames together.
        hold_seconds: of the last frame beyond its share.
        scale: each pixel is enlarged to `scale` x `scale`.

    Raises:
        ValueError: there are no frames.
    """
    from PIL import Image  # here, as in `save_png`

    if not frames:
        raise ValueError("an animation needs at least one frame")
    milliseconds = [max(20, round(1000 * seconds / len(frames)))] * len(frames)
    milliseconds[-1] += round(1000 * hold_seconds)
    first, *rest = [Image.fromarray(_enlarged(frame, scale)) for frame in frames]
    first.save(path, format="WEBP", save_all=True, append_images=rest, duration=milliseconds, loop=0, quality=85)


def _captions(names: Sequence[str], height: int) -> list[np.ndarray]:
    """Pictures of the names, in black on white, all of one width and of this height, shape (height, width, 3)."""
    from PIL import Image, ImageDraw, ImageFont  # here, as in `save_png`

    font = ImageFont.load_default(size=min(_FONT_SIZE, height))
    width = max(math.ceil(font.getlength(name)) for name in names) + _FONT_SIZE
    captions = []
    for name in names:
        picture = Image.new("RGB", (width, height), "white")
        ImageDraw.Draw(picture).text((_FONT_SIZE // 2, height // 2), name, "black", font, anchor="lm")
        captions.append(np.asarray(picture))
    return captions


def _enlarged(image: UInt8[Tensor, "height width channels"], scale: int) -> np.ndarray:
    array: np.ndarray = image.cpu().numpy().repeat(scale, axis=0).repeat(scale, axis=1)
    return array.squeeze(2) if array.shape[2] == 1 else array
