"""Draw images with the trained model: the arrays, a grid of them, and an animation of the reverse process."""

import json
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ddpm.checkpoint import PublishedModel, load_model
from ddpm.devices import arithmetic, best_device, compiled, largest_batch_size
from ddpm.diffusion import NoiseModel
from ddpm.distributed import collected, is_first, share
from ddpm.files import atomic_path, file_digest
from ddpm.images import grid, save_animation, save_png, to_pixels
from ddpm.samplers import ImageNoise, SamplerStep, sampler_steps
from stages.params import Params
from stages.paths import GRID, MODEL, REVERSE_PROCESS, SAMPLES, SAMPLES_RECORD
from stages.prepared import recorded_run_id
from stages.progress import progress_bar
from stages.runner import run_stage
from stages.sections import SampleParams
from stages.tracking import reopened_run

CPU_BATCH_SIZE = 32

LARGEST_BATCH_SIZE = 1024
"""Beyond which a GPU gains nothing."""

_SHOWN_PIXELS = 96
"""Small images are enlarged, for the eye, to at least this size."""


def main(params: Params) -> None:
    """build/samples/: samples.npy, grid.png, reverse_process.webp, samples.json."""
    wanted, device = params.sample, best_device()
    model = load_model(MODEL, wanted.weights, device)
    with reopened_run(params, "sample", recorded_run_id(MODEL / "run.json")) as tracker:
        pixels, frames = draw(model, wanted, device)
        if not is_first():
            return
        write(pixels, frames, wanted, model.image_size, tracker.run_id)
        final_grid = np.asarray(grid(pixels[: wanted.num_grid_images]))
        tracker.record_image("final_samples", final_grid)
        tracker.record_file(GRID, "samples")
        tracker.record_file(REVERSE_PROCESS, "samples")
    print(f"sample: {len(pixels)} images by {wanted.sampler} in {wanted.num_sampling_steps} steps", flush=True)


@torch.no_grad()
def draw(model: PublishedModel, wanted: SampleParams, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """All images as bytes, and the first `num_grid_images` of them at each shown step on their way from noise.

    Each process draws its share of the images; the first one gets them all.
    """
    numbers = range(wanted.num_images)[share(wanted.num_images)]
    # Autocast keeps the cast weights from call to call, but only of weights that could be trained.
    network = compiled(model.unet.requires_grad_(True), wanted.compilation, device)
    with arithmetic(wanted.precision, device):
        batch_size = wanted.batch_size or fitting_batch_size(model, len(numbers), device)
        batches: list[Tensor] = [torch.empty(0, 3, model.image_size, model.image_size, dtype=torch.uint8)]
        shown = {number: list(batches) for number in frame_steps(wanted.num_sampling_steps, wanted.num_frames)}
        with progress_bar("sample", len(numbers) * wanted.num_sampling_steps, "network calls") as bar:
            for start in range(0, len(numbers), batch_size):
                batch = numbers[start : start + batch_size]
                num_in_grid = len(range(batch.start, min(batch.stop, wanted.num_grid_images)))
                for step in steps_of(network, model, wanted, batch, device):
                    bar.update(len(batch))
                    if step.number in shown and num_in_grid:
                        shown[step.number].append(to_pixels(step.x_t[:num_in_grid]).cpu())
                batches.append(to_pixels(step.x_t).cpu())
    return collected(torch.cat(batches)), [collected(torch.cat(parts)) for parts in shown.values()]


def steps_of(
    network: NoiseModel, model: PublishedModel, wanted: SampleParams, numbers: range, device: torch.device
) -> Iterator[SamplerStep]:
    """The sampler's steps for the images of these numbers."""
    noise = ImageNoise(wanted.seed, numbers, (3, model.image_size, model.image_size), device)
    return sampler_steps(wanted.sampler, network, model.diffusion, noise, wanted.num_sampling_steps, wanted.eta)


def fitting_batch_size(model: PublishedModel, num_images: int, device: torch.device) -> int:
    """As many images as a GPU's memory holds, found by trial; on a CPU a size beyond which nothing is gained."""
    if device.type == "cpu":
        return CPU_BATCH_SIZE
    size = model.image_size

    def attempt(batch_size: int) -> None:
        # Not compiled: each size tried would be compiled for.
        model.unet(torch.zeros(batch_size, 3, size, size, device=device), torch.zeros(batch_size, device=device).long())

    return largest_batch_size(attempt, max(1, min(LARGEST_BATCH_SIZE, num_images)))


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
    source |= json.loads((MODEL / "trained_on.json").read_text())
    with atomic_path(SAMPLES_RECORD) as temporary:
        temporary.write_text(json.dumps(source, indent=2) + "\n")


if __name__ == "__main__":
    run_stage("sample", main, lambda params: params.sample.num_processes)
