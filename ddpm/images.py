"""The only conversion between bytes in [0, 255] and the model's [-1, 1]; grids and animations of images."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.shapes import Float, UInt8

Pixels = UInt8[Tensor, "batch channels height width"]


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
    # torchvision is needed to draw, not to train: importing it here keeps the library usable with torch alone.
    from torchvision.utils import make_grid

    if len(pixels) == 0:
        raise ValueError("a grid needs at least one image")
    columns = columns or math.ceil(math.sqrt(len(pixels)))
    drawn: Tensor = make_grid(pixels, nrow=columns, padding=2, pad_value=255)
    return drawn.permute(1, 2, 0)


def save_png(image: UInt8[Tensor, "height width channels"], path: Path, scale: int = 1) -> None:
    """Write an image as PNG, each pixel enlarged to `scale` x `scale`."""
    from PIL import Image  # as for torchvision

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
    from PIL import Image  # as for torchvision

    if not frames:
        raise ValueError("an animation needs at least one frame")
    milliseconds = [max(20, round(1000 * seconds / len(frames)))] * len(frames)
    milliseconds[-1] += round(1000 * hold_seconds)
    first, *rest = [Image.fromarray(_enlarged(frame, scale)) for frame in frames]
    first.save(path, format="WEBP", save_all=True, append_images=rest, duration=milliseconds, loop=0, quality=85)


def _enlarged(image: UInt8[Tensor, "height width channels"], scale: int) -> np.ndarray:
    array: np.ndarray = image.cpu().numpy().repeat(scale, axis=0).repeat(scale, axis=1)
    return array.squeeze(2) if array.shape[2] == 1 else array
