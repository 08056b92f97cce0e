"""Draw images with the trained model: the arrays, a grid of them, and an animation of the reverse process."""

import json

import numpy as np
import torch
from torch import Tensor

from ddpm.checkpoint import PublishedModel, load_model
from ddpm.files import atomic_path, file_digest
from ddpm.images import grid, save_animation, save_png, to_pixels
from ddpm.samplers import ImageNoise, sampler_steps
from ddpm.training import resolve_precision
from stages.device import best_device
from stages.params import Params, SampleParams
from stages.paths import GRID, MODEL, REVERSE_PROCESS, SAMPLES, SAMPLES_RECORD
from stages.prepared import recorded_run_id
from stages.progress import progress_bar
from stages.runner import run_stage
from stages.tracking import reopened_run

_SHOWN_PIXELS = 96
"""Small images are enlarged, for the eye, to at least this size."""


def main(params: Params) -> None:
    """build/samples/: samples.npy, grid.png, reverse_process.webp, samples.json."""
    wanted, device = params.sample, best_device()
    model = load_model(MODEL, wanted.weights, device)
    with reopened_run(params, "sample", recorded_run_id(MODEL / "run.json")) as tracker:
        pixels, frames = draw(model, wanted, device)
        write(pixels, frames, wanted, model.image_size, tracker.run_id)
        final_grid = np.asarray(grid(pixels[: wanted.num_grid_images]))
        tracker.record_image("final_samples", final_grid)
        tracker.record_file(GRID, "samples")
        tracker.record_file(REVERSE_PROCESS, "samples")
    print(f"sample: {len(pixels)} images by {wanted.sampler} in {wanted.num_sampling_steps} steps", flush=True)


@torch.no_grad()
def draw(model: PublishedModel, wanted: SampleParams, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """All images as bytes, and the first `num_grid_images` of them at each shown step on their way from noise."""
    batches: list[Tensor] = []
    shown: dict[int, list[Tensor]] = {
        number: [] for number in frame_steps(wanted.num_sampling_steps, wanted.num_frames)
    }
    shape = (3, model.image_size, model.image_size)
    dtype = resolve_precision(wanted.precision, device)
    with progress_bar("sample", wanted.num_images * wanted.num_sampling_steps, "network calls") as bar:
        for first in range(0, wanted.num_images, wanted.batch_size):
            numbers = range(first, min(first + wanted.batch_size, wanted.num_images))
            noise = ImageNoise(wanted.seed, numbers, shape, device)
            steps = sampler_steps(
                wanted.sampler, model.unet, model.diffusion, noise, wanted.num_sampling_steps, wanted.eta
            )
            with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                for step in steps:
                    bar.update(len(numbers))
                    if step.number in shown and first < wanted.num_grid_images:
                        shown[step.number].append(to_pixels(step.x_t).cpu())
            batches.append(to_pixels(step.x_t).cpu())
    frames = [torch.cat(parts)[: wanted.num_grid_images] for parts in shown.values()]
    return torch.cat(batches), frames


def frame_steps(num_sampling_steps: int, num_frames: int) -> list[int]:
    """Which steps of the sampler are shown: evenly spaced, the last one among them."""
    return [round(number) for number in np.linspace(1, num_sampling_steps, num_frames)]


def write(pixels: Tensor, frames: list[Tensor], wanted: SampleParams, image_size: int, run_id: str) -> None:
    """The arrays and the pictures."""
    scale = max(1, -(-_SHOWN_PIXELS // image_size))
    with atomic_path(SAMPLES / "samples.npy") as temporary:
        np.save(temporary, pixels.permute(0, 2, 3, 1).numpy())
    with atomic_path(GRID) as temporary:
        save_png(grid(pixels[: wanted.num_grid_images]), temporary, scale)
    with atomic_path(REVERSE_PROCESS) as temporary:
        save_animation([grid(frame) for frame in frames], temporary, scale=scale)
    model_sha256 = file_digest(MODEL / f"{wanted.weights}.safetensors", "sha256")
    source = {"model_sha256": model_sha256, "mlflow_run_id": run_id} | wanted.model_dump()
    with atomic_path(SAMPLES_RECORD) as temporary:
        temporary.write_text(json.dumps(source, indent=2) + "\n")


if __name__ == "__main__":
    run_stage("sample", main)
