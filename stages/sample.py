"""Draw images with the trained model: the arrays, a grid of them, and the reverse process as animation and strip."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from contract.errors import StageError
from contract.params import Params
from contract.paths import (
    GRID,
    INTERPOLATION,
    MODEL,
    REVERSE_PROCESS,
    REVERSE_PROCESS_STRIP,
    SAMPLES,
    SAMPLES_CLASSES,
    SAMPLES_RECORD,
)
from contract.sections import SampleParams
from ddpm.checkpoint import PublishedModel, load_model
from ddpm.classes import ImageClass, labels_of
from ddpm.devices import compiled, drawing, largest_batch_size, prepare_best_device
from ddpm.distributed import collected, is_first, share
from ddpm.files import atomic_path, file_digest
from ddpm.images import class_grid, enlargement, grid, save_animation, save_png, to_pixels
from ddpm.samplers import InterpolatedNoise, SamplerStep, sample
from ddpm.samplers.noise import choose_block_size
from stages.datasets.prepared import recorded_run_id
from stages.runtime.progress import progress_bar
from stages.runtime.runner import run_stage
from tracking.runs import reopen_run

Item = TypeVar("Item")

CPU_BATCH_SIZE = 32

LARGEST_BATCH_SIZE = 1024
"""Beyond which a GPU gains nothing."""

_STRIP_IMAGES, _STRIP_FRAMES = 5, 12
"""Rows and columns of the strip of the reverse process, at most."""


def main(params: Params) -> None:
    """build/samples/: samples.npy, samples.json, the pictures, and classes.csv where the model knows classes."""
    wanted, device = params.sample, prepare_best_device()
    model = load_model(MODEL, wanted.weights, device)
    cycle = asked_classes(model, wanted)
    with reopen_run(params, "sample", recorded_run_id(MODEL / "run.json")) as tracker:
        pixels, frames = draw(model, wanted, device)
        if not is_first():
            return
        names = [each.name for each in cycle]
        files = write(pixels, frames, names, wanted)
        if cycle:
            files.append(write_classes(cycle, len(pixels)))
        if wanted.num_interpolation_images:
            row = interpolate(model, wanted, device)[None]
            files.append(save_rows(row, in_turn(names, wanted.interpolation_ends[:1]), INTERPOLATION))
        write_record(wanted, tracker.run_id)
        tracker.record_image("final_samples", np.asarray(shown_grid(pixels[: wanted.num_grid_images], names)))
        for path in files:
            tracker.record_file(path, "samples")
    print(f"sample: {len(pixels)} images by {wanted.sampler} in {wanted.num_sampling_steps} steps", flush=True)


def asked_classes(model: PublishedModel, wanted: SampleParams) -> list[ImageClass]:
    """The classes that the images are of in turn; none where the model knows none.

    Raises:
        StageError: the model cannot be asked for them.
    """
    try:
        model.asked(wanted.classes, [0], wanted.guidance_scale)
        return [model.classes[label] for label in labels_of(wanted.classes, model.classes)]
    except ValueError as error:
        raise StageError(f"{MODEL} cannot be asked for this: {error}") from None


def draw(model: PublishedModel, wanted: SampleParams, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """All images as bytes, and the first `num_grid_images` of them at each shown step on their way from noise.

    Each process draws its share of the images; the first one gets them all. A compiled network is called with batches
    of one size, since each size is compiled for: the last batch is filled up with further images, which are dropped.
    """
    numbers = range(wanted.num_images)[share(wanted.num_images)]
    network = compiled(model.unet, wanted.compilation, device)
    is_compiled = network is not model.unet
    with drawing(model.unet, wanted.precision, device):
        batch_size = wanted.batch_size or fitting_batch_size(model, wanted, len(numbers), device)
        if is_compiled:
            batch_size = even_batch_size(len(numbers), batch_size)
        batches: list[Tensor] = [torch.empty(0, 3, model.image_size, model.image_size, dtype=torch.uint8)]
        shown = {number: list(batches) for number in frame_steps(wanted.num_sampling_steps, wanted.num_frames)}
        with progress_bar("sample", len(numbers) * wanted.num_sampling_steps, "network calls") as bar:
            for start in range(0, len(numbers), batch_size):
                batch = numbers[start : start + batch_size]
                num_in_grid = len(range(batch.start, min(batch.stop, wanted.num_grid_images)))
                filled = range(batch.start, batch.start + batch_size) if is_compiled else batch
                for step in steps_of(model, wanted, filled, network):
                    bar.update(len(batch))
                    if step.number in shown and num_in_grid:
                        shown[step.number].append(to_pixels(step.x_t[:num_in_grid]).cpu())
                batches.append(to_pixels(step.x_t[: len(batch)]).cpu())
    return collected(torch.cat(batches)), [collected(torch.cat(parts)) for parts in shown.values()]


def steps_of(model: PublishedModel, wanted: SampleParams, numbers: range, network: nn.Module) -> Iterator[SamplerStep]:
    """The sampler's steps for the images of these numbers."""
    how = (wanted.sampler, wanted.num_sampling_steps, wanted.eta, wanted.classes, wanted.guidance_scale)
    return model.steps(numbers, wanted.seed, *how, network)


def fitting_batch_size(model: PublishedModel, wanted: SampleParams, num_images: int, device: torch.device) -> int:
    """As many images as a GPU's memory holds, found by trial; on a CPU a size beyond which nothing is gained."""
    if device.type == "cpu":
        return CPU_BATCH_SIZE

    def attempt(batch_size: int) -> None:
        # Not compiled: each size tried would be compiled for.
        predict = model.asked(wanted.classes, range(batch_size), wanted.guidance_scale)
        # Beside it lies the noise of the steps to come.
        x_t = torch.zeros(choose_block_size(model.image_shape), batch_size, *model.image_shape, device=device)[0]
        predict(x_t, torch.zeros(batch_size, device=device).long())

    return largest_batch_size(attempt, max(1, min(LARGEST_BATCH_SIZE, num_images)))


def even_batch_size(num_images: int, batch_size: int) -> int:
    """Return the least batch size that makes no more batches than `batch_size`: the last one then lacks few images."""
    num_batches = max(1, math.ceil(num_images / batch_size))
    return max(1, math.ceil(num_images / num_batches))


def interpolate(model: PublishedModel, wanted: SampleParams, device: torch.device) -> Tensor:
    """Images from one of the two ends to the other, as bytes; all of the class of the first end."""
    ends = wanted.interpolation_ends[0], wanted.interpolation_ends[1]
    parts = []
    way = torch.linspace(0.0, 1.0, wanted.num_interpolation_images)
    for fractions in torch.split(way, wanted.batch_size or CPU_BATCH_SIZE):
        noise = InterpolatedNoise(wanted.seed, ends, fractions, model.image_shape, device)
        # Not compiled: it would be compiled for this size.
        predict = model.asked(wanted.classes, ends[:1] * len(fractions), wanted.guidance_scale)
        with drawing(model.unet, wanted.precision, device):
            images = sample(wanted.sampler, predict, model.diffusion, noise, wanted.num_sampling_steps, wanted.eta)
        parts.append(to_pixels(images).cpu())
    return torch.cat(parts)


def frame_steps(num_sampling_steps: int, num_frames: int) -> list[int]:
    """Which steps of the sampler are shown: evenly spaced, the last one among them."""
    return [round(number) for number in np.linspace(1, num_sampling_steps, num_frames)]


def write(pixels: Tensor, frames: list[Tensor], names: Sequence[str], wanted: SampleParams) -> list[Path]:
    """The arrays and the pictures; returns where the pictures are."""
    scale = enlargement(pixels.shape[-1])
    with atomic_path(SAMPLES / "samples.npy") as temporary:
        np.save(temporary, pixels.permute(0, 2, 3, 1).numpy())
    with atomic_path(GRID) as temporary:
        save_png(shown_grid(pixels[: wanted.num_grid_images], names), temporary, 1 if names else scale)
    with atomic_path(REVERSE_PROCESS) as temporary:
        save_animation([grid(frame) for frame in frames], temporary, scale=scale)
    shown = [frames[number - 1] for number in frame_steps(len(frames), min(len(frames), _STRIP_FRAMES))]
    rows = torch.stack(shown, dim=1)[:_STRIP_IMAGES]
    save_rows(rows, in_turn(names, range(len(rows))), REVERSE_PROCESS_STRIP)
    return [GRID, REVERSE_PROCESS, REVERSE_PROCESS_STRIP]


def shown_grid(pixels: Tensor, names: Sequence[str]) -> Tensor:
    """The images in a square; where they have classes, a row for each, enlarged so that its name can be read."""
    return class_grid(pixels, names, enlargement(pixels.shape[-1])) if names else grid(pixels)


def save_rows(rows: Tensor, names: Sequence[str], path: Path) -> Path:
    """A picture of rows of images, shape (rows, columns, channels, height, width), and of their names if any."""
    scale = enlargement(rows.shape[-1])
    with atomic_path(path) as temporary:
        if names:
            save_png(class_grid(rows.transpose(0, 1).flatten(0, 1), names, scale), temporary)
        else:
            save_png(grid(rows.flatten(0, 1), columns=rows.shape[1]), temporary, scale)
    return path


def write_classes(cycle: Sequence[ImageClass], num_images: int) -> Path:
    """Which class each image was asked to be of, a row an image."""
    classes = in_turn(cycle, range(num_images))
    table = pd.DataFrame(
        {
            "image": range(num_images),
            "class_number": [each.number for each in classes],
            "class_name": [each.name for each in classes],
        }
    )
    with atomic_path(SAMPLES_CLASSES) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    return SAMPLES_CLASSES


def in_turn(items: Sequence[Item], numbers: Sequence[int]) -> list[Item]:
    """The item of each number, where number i has item i mod len(items); none where there are none."""
    return [items[number % len(items)] for number in numbers] if items else []


def write_record(wanted: SampleParams, run_id: str) -> None:
    """What the images were made from and how."""
    model_sha256 = file_digest(MODEL / f"{wanted.weights}.safetensors", "sha256")
    source = {"model_sha256": model_sha256, "mlflow_run_id": run_id} | wanted.model_dump()
    source |= json.loads((MODEL / "trained_on.json").read_text())
    with atomic_path(SAMPLES_RECORD) as temporary:
        temporary.write_text(json.dumps(source, indent=2) + "\n")


if __name__ == "__main__":
    run_stage("sample", main, lambda params: params.sample.num_processes)
