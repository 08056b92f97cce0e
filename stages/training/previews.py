"""Samples drawn during a training, as files beside DVC's outputs: what the run page shows meanwhile."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contract.events import PictureWritten, emit
from contract.paths import PREVIEWS
from ddpm.distributed import is_first
from ddpm.files import atomic_path
from stages.runtime.reporting import say
from tracking.runs import Tracker

NUM_KEPT = 3
"""The newest; who was told of one may read it a little later."""

_LEAST_SIDE, _LARGEST_SIDE = 400, 1000


def show_samples(tracker: Tracker, picture: NDArray[np.uint8], step: int, folder: Path = PREVIEWS) -> None:
    """Record the picture in MLflow, and leave it as a file for the run page; the first of several processes does."""
    tracker.record_image("samples", picture, step)
    if is_first():
        path = leave_preview(picture, step, folder)
        say("train", f"samples of step {step} in {path}")
        emit(PictureWritten(str(path), step))


def leave_preview(picture: NDArray[np.uint8], step: int, folder: Path = PREVIEWS) -> Path:
    """Write a picture, shape (height, width, 3), for the eye: small ones enlarged, large ones reduced.

    Returns:
        The file; older ones are removed.
    """
    path = folder / f"step_{step:09d}.png"
    with atomic_path(path) as temporary:
        _for_the_eye(Image.fromarray(picture)).save(temporary, format="PNG")
    by_age = sorted(folder.glob("step_*.png"), key=lambda preview: (preview.stat().st_mtime_ns, preview.name))
    for older in by_age[:-NUM_KEPT]:
        older.unlink()
    return path


def _for_the_eye(image: Image.Image) -> Image.Image:
    scale = max(1, _LEAST_SIDE // max(image.size))
    shown = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    shown.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    return shown
