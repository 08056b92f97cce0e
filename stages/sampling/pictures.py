"""Pictures of the samples: a grid, the reverse process as animation and strip, an interpolation."""

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor

from ddpm.files import atomic_path
from ddpm.images import Picture, class_grid, enlargement, grid, save_animation, save_png
from stages.sampling.drawing import choose_steps

_MAX_STRIP_ROWS, _MAX_STRIP_COLUMNS = 5, 12


def write_grid(picture: Picture, image_size: int, names: Sequence[str], path: Path) -> None:
    """Write a picture of `sample_grid`, enlarged for the eye, if it is not enlarged yet."""
    with atomic_path(path) as temporary:
        save_png(picture, temporary, 1 if names else enlargement(image_size))


def write_animation(frames: Sequence[Tensor], path: Path) -> None:
    """Write the frames of the reverse process as an animation of grids."""
    with atomic_path(path) as temporary:
        save_animation([grid(frame) for frame in frames], temporary, scale=enlargement(frames[0].shape[-1]))


def write_strip(frames: Sequence[Tensor], names: Sequence[str], path: Path) -> None:
    """Write the reverse process of the first images as a row for each, from noise to image."""
    shown = [frames[number - 1] for number in choose_steps(len(frames), min(len(frames), _MAX_STRIP_COLUMNS))]
    rows = torch.stack(shown, dim=1)[:_MAX_STRIP_ROWS]
    write_rows(rows, list(islice(cycle(names), len(rows))), path)


def write_rows(rows: Tensor, names: Sequence[str], path: Path) -> None:
    """Write rows of images, shape (rows, columns, channels, height, width), each with its name, if there are names."""
    scale = enlargement(rows.shape[-1])
    with atomic_path(path) as temporary:
        if names:
            save_png(class_grid(rows.transpose(0, 1).flatten(0, 1), names, scale), temporary)
        else:
            save_png(grid(rows.flatten(0, 1), columns=rows.shape[1]), temporary, scale)
