"""Draw from a published model, or export one, for the command line; needs the library `ddpm` alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

import ddpm
from contract.errors import FlowersError
from ddpm.checkpoint import CheckpointError
from ddpm.classes import labels_of
from ddpm.config import SamplerName
from ddpm.export import ExportError, to_diffusers
from ddpm.images import class_grid, enlargement, grid
from ddpm.published import PublishedModel

GRID = "grid.png"
RECORD = "drawn.json"
MAX_GRID_IMAGES = 256
BATCH_SIZE = 32


def draw_images(
    n: int,
    source: str,
    folder: Path,
    weights: str | None,
    seed: int,
    sampler: SamplerName,
    steps: int,
    eta: float,
    class_words: Sequence[str],
    guidance: float,
) -> None:
    """Write `n` images as PNG files into a folder, with a grid of them and a record of how they were drawn.

    Raises:
        FlowersError: the folder holds something, or the model cannot be loaded or asked for this.
    """
    require_empty(folder)
    model = load(source, weights)
    classes = choose_classes(model, class_words)
    settings = {"seed": seed, "sampler": sampler, "steps": steps, "eta": eta, "classes": classes, "guidance": guidance}
    try:
        with Progress(transient=True) as progress:
            bar = progress.add_task("drawing", total=steps * -(-n // BATCH_SIZE))
            pixels = model.draw(
                n,
                seed=seed,
                sampler=sampler,
                steps=steps,
                eta=eta,
                classes=classes,
                guidance=guidance,
                batch_size=BATCH_SIZE,
                on_step=lambda _: progress.advance(bar),
            )
    except ValueError as error:
        raise FlowersError(f"{source}: {error}") from None
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        save(image, folder / f"{number:0{len(str(n - 1))}}.png")
    names = [model.classes[label].name for label in labels_of(classes, model.classes)]
    save(draw_grid(model, pixels[:MAX_GRID_IMAGES], names), folder / GRID)
    (folder / RECORD).write_text(json.dumps({"model": source, "weights": weights, "n": n} | settings, indent=2) + "\n")
    print(f"{n} images and {GRID} in {folder}")


def export_model(source: str, folder: Path, weights: str | None) -> None:
    """Write a model as a folder that Hugging Face diffusers loads.

    Raises:
        FlowersError: the model cannot be loaded or exported, or the folder exists.
    """
    try:
        to_diffusers(load(source, weights, "cpu"), folder)
    except (ExportError, OSError) as error:
        raise FlowersError(str(error)) from None
    print(f'DDPMPipeline.from_pretrained("{folder}", trust_remote_code=True) loads it')


def load(source: str, weights: str | None, device: str | None = None) -> PublishedModel:
    """Load a model from a folder or a registry.

    Raises:
        FlowersError: it is missing or damaged.
    """
    try:
        return ddpm.load(source, weights, device)
    except CheckpointError as error:
        raise FlowersError(str(error)) from None


def choose_classes(model: PublishedModel, words: Sequence[str]) -> list[str | int] | None:
    """Return the classes that words mean, each a name or a number of the model; None for all."""
    names = {each.name for each in model.classes}
    return [int(word) if word.isdecimal() and word not in names else word for word in words] or None


def require_empty(folder: Path) -> None:
    """Refuse a folder whose files would mix with the new ones.

    Raises:
        FlowersError: it is a file, or holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FlowersError(f"{folder} exists and is not an empty folder: name another one by --output")


def draw_grid(model: PublishedModel, pixels: "ddpm.images.Pixels", names: Sequence[str]) -> np.ndarray:
    """Return a picture of the images side by side; with classes, each class has a row with its name."""
    scale = enlargement(model.image_size)
    if names:
        return np.asarray(class_grid(pixels, names, scale))
    return np.asarray(grid(pixels)).repeat(scale, axis=0).repeat(scale, axis=1)


def save(image: np.ndarray, path: Path) -> None:
    """Write an array of shape (height, width, channels) as PNG."""
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(path, optimize=True)
