"""Draw from a published model, or export one, for the command line; needs the library `ddpm` alone."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import Progress

import ddpm
from contract.errors import FlowersError
from ddpm.checkpoint import CheckpointError
from ddpm.classes import labels_of
from ddpm.export import ExportError, to_diffusers
from ddpm.images import class_grid, enlarge, enlargement, grid, save_png

GRID = "grid.png"
RECORD = "drawn.json"
MAX_GRID_IMAGES = 256
BATCH_SIZE = 32


def draw_images(
    n: int, source: str, folder: Path, weights: str | None, class_words: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """Write `n` images as PNG files into a folder, with a grid of them and a record of how they were drawn.

    Args:
        n: at least 1.
        source: folder or address of the model.
        folder: new or empty.
        weights: set of weights; None for the averaged ones.
        class_words: names or numbers of the classes to draw; none for all.
        settings: seed, sampler, steps, eta and guidance of `PublishedModel.draw`.

    Raises:
        FlowersError: the folder holds something, or the model cannot be loaded or asked for this.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FlowersError(f"{folder} exists and is not an empty folder: name another one by --output")
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise FlowersError(f"{folder} cannot be written, because of {place}: name another one by --output")
    with explain_errors(source), Progress(transient=True) as progress:
        model = ddpm.load(source, weights)
        classes = class_words or None
        bar = progress.add_task("drawing", total=settings["steps"] * -(-n // BATCH_SIZE))
        pixels = model.draw(
            n, classes=classes, batch_size=BATCH_SIZE, on_step=lambda _: progress.advance(bar), **settings
        )
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        save_png(image, folder / f"{number:0{len(str(n - 1))}}.png")
    names = [model.classes[label].name for label in labels_of(classes, model.classes)]
    shown, scale = pixels[:MAX_GRID_IMAGES], enlargement(model.image_size)
    save_png(class_grid(shown, names, scale) if names else enlarge(grid(shown), scale), folder / GRID)
    record = {"model": source, "weights": weights, "n": n, **settings, "classes": names if classes else None}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    print(f"{n} images and {GRID} in {folder}")


def export_model(source: str, folder: Path, weights: str | None) -> None:
    """Write a model as a folder that Hugging Face diffusers loads.

    Raises:
        FlowersError: the model cannot be loaded or exported, or the folder exists.
    """
    with explain_errors(source):
        to_diffusers(ddpm.load(source, weights, "cpu"), folder)
    print(f'DDPMPipeline.from_pretrained("{folder}", trust_remote_code=True) loads it')


@contextmanager
def explain_errors(source: str) -> Iterator[None]:
    """Turn the library's errors about the model `source` into errors for people.

    Raises:
        FlowersError: the model is missing, damaged, or cannot do what was asked for.
    """
    try:
        yield
    except (CheckpointError, ExportError, OSError) as error:
        raise FlowersError(" ".join(str(error).split())) from None
    except ValueError as error:
        raise FlowersError(f"{source}: {error}") from None
