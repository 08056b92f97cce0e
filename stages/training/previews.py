"""Pictures of samples during training, in MLflow and as files that DVC does not track."""

from pathlib import Path

from PIL import Image

from contract.events import PictureWritten, emit
from ddpm.distributed import is_first
from ddpm.files import atomic_path
from ddpm.images import Picture, enlarge
from stages.runtime.reporting import say
from tracking.runs import Tracker

NUM_KEPT = 3
"""Number of pictures that stay; a reader may open one a little after it was announced."""

_MIN_SIDE, _MAX_SIDE = 400, 1000


def show_samples(tracker: Tracker, picture: Picture, step: int, folder: Path) -> None:
    """Record a picture in MLflow; the first process also writes and announces a file."""
    tracker.record_image("samples", picture, step)
    if is_first():
        path = write_preview(picture, step, folder)
        say("train", f"samples of step {step} in {path}")
        emit(PictureWritten(str(path), step))


def write_preview(picture: Picture, step: int, folder: Path) -> Path:
    """Write a picture, enlarged or reduced to a size for the screen, and remove old ones.

    Returns:
        The path of the file.
    """
    path = folder / f"step_{step:09d}.png"
    image = Image.fromarray(enlarge(picture, max(1, _MIN_SIDE // max(picture.shape[:2]))))
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
    by_age = sorted(folder.glob("step_*.png"), key=lambda preview: (preview.stat().st_mtime_ns, preview.name))
    for older in by_age[:-NUM_KEPT]:
        older.unlink()
    return path
