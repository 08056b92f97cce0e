"""Drawing images in batches, shared among the processes."""

import math

import numpy as np
import torch
from torch import Tensor

from contract.sections import SampleParams
from ddpm.devices import compile_network, drawing, largest_batch_size
from ddpm.distributed import collect, share
from ddpm.images import to_pixels
from ddpm.published import PublishedModel
from ddpm.samplers import InterpolatedNoise, sample
from ddpm.samplers.noise import choose_block_size
from stages.runtime.reporting import progress_bar

CPU_BATCH_SIZE = 32

MAX_BATCH_SIZE = 1024
"""Largest batch that makes a GPU faster."""


def draw_samples(model: PublishedModel, params: SampleParams, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Draw all images, and the first `num_grid_images` of them at each shown step on their way from noise.

    Each process draws its share and returns all. A compiled network is called with batches of one size, since each size
    is compiled for: the last batch is filled up with further images, which are dropped.

    Returns:
        The images and the frames, as bytes on the CPU, each of shape (images, channels, height, width).
    """
    numbers = range(params.num_images)[share(params.num_images)]
    network = compile_network(model.unet, params.compilation, device)
    is_compiled = network is not model.unet
    settings = (params.sampler, params.num_sampling_steps, params.eta, params.classes, params.guidance_scale)
    with drawing(model.unet, params.precision, device):
        batch_size = params.batch_size or choose_batch_size(model, params, len(numbers), device)
        if is_compiled:
            batch_size = even_out(len(numbers), batch_size)
        batches = [torch.empty(0, 3, model.image_size, model.image_size, dtype=torch.uint8)]
        frames = {number: list(batches) for number in choose_steps(params.num_sampling_steps, params.num_frames)}
        with progress_bar("sample", len(numbers) * params.num_sampling_steps, "network calls") as bar:
            for start in range(0, len(numbers), batch_size):
                batch = numbers[start : start + batch_size]
                num_in_grid = len(range(batch.start, min(batch.stop, params.num_grid_images)))
                filled = range(batch.start, batch.start + batch_size) if is_compiled else batch
                for step in model.steps(filled, params.seed, *settings, network):
                    bar.update(len(batch))
                    if step.number in frames and num_in_grid:
                        frames[step.number].append(to_pixels(step.x_t[:num_in_grid]).cpu())
                batches.append(to_pixels(step.x_t[: len(batch)]).cpu())
    return collect(torch.cat(batches)), [collect(torch.cat(parts)) for parts in frames.values()]


def draw_interpolation(model: PublishedModel, params: SampleParams, device: torch.device) -> Tensor:
    """Draw images from one end to the other by way of their noise, as bytes; all of the class of the first end."""
    ends = params.interpolation_ends[0], params.interpolation_ends[1]
    parts = []
    way = torch.linspace(0.0, 1.0, params.num_interpolation_images)
    for fractions in torch.split(way, params.batch_size or CPU_BATCH_SIZE):
        noise = InterpolatedNoise(params.seed, ends, fractions, model.image_shape, device)
        # The network itself: a compiled one would be compiled for this size.
        predict = model.bind_classes(params.classes, ends[:1] * len(fractions), params.guidance_scale)
        with drawing(model.unet, params.precision, device):
            images = sample(params.sampler, predict, model.diffusion, noise, params.num_sampling_steps, params.eta)
        parts.append(to_pixels(images).cpu())
    return torch.cat(parts)


def choose_batch_size(model: PublishedModel, params: SampleParams, num_images: int, device: torch.device) -> int:
    """Return the largest batch that fits a GPU's memory, found by trial; on a CPU, a fixed size."""
    if device.type == "cpu":
        return CPU_BATCH_SIZE

    def attempt(batch_size: int) -> None:
        # The network itself: a compiled one would be compiled for each size.
        predict = model.bind_classes(params.classes, range(batch_size), params.guidance_scale)
        # The noise of the steps to come takes memory, too.
        x_t = torch.zeros(choose_block_size(model.image_shape), batch_size, *model.image_shape, device=device)[0]
        predict(x_t, torch.zeros(batch_size, device=device).long())

    return largest_batch_size(attempt, max(1, min(MAX_BATCH_SIZE, num_images)))


def even_out(num_images: int, batch_size: int) -> int:
    """Return the least batch size that makes no more batches than `batch_size`, so that the last lacks few images."""
    num_batches = max(1, math.ceil(num_images / batch_size))
    return max(1, math.ceil(num_images / num_batches))


def choose_steps(num_steps: int, num_shown: int) -> list[int]:
    """Return which of the steps 1 … num_steps to show: evenly spaced, with the last one."""
    return [round(number) for number in np.linspace(1, num_steps, num_shown)]
