"""Samples of the averaged weights, drawn during training from the same noise each time."""

import torch
from torch import Tensor

from ddpm.devices import drawing
from ddpm.diffusion import build_diffusion
from ddpm.distributed import collect, share
from ddpm.images import Picture, class_grid, enlargement, grid, to_pixels
from ddpm.published import PublishedModel
from ddpm.samplers import ImageNoise, sample
from ddpm.unet import UNet
from stages.training.experiment import Experiment


def draw_grid(experiment: Experiment) -> Picture:
    """Draw samples as one picture, with the names of their classes, if the network knows classes."""
    pixels = draw_samples(experiment, experiment.params.num_grid_images)
    if experiment.classes:
        names = [each.name for each in experiment.classes]
        return class_grid(pixels, names, enlargement(experiment.image_size))
    return grid(pixels)


def draw_samples(experiment: Experiment, count: int) -> Tensor:
    """Draw `count` images of all classes in turn; each process draws its share, and returns all.

    Returns:
        Bytes on the CPU, shape (count, 3, height, width).
    """
    params, size, device = experiment.params, experiment.image_size, experiment.device
    diffusion = build_diffusion(params.diffusion).to(device)
    network = experiment.state.ema.module
    assert isinstance(network, UNet)
    model = PublishedModel(network, diffusion, size, experiment.classes)
    numbers, batches = range(count)[share(count)], [torch.empty(0, 3, size, size, dtype=torch.uint8)]
    batch_size = max(params.batch_size, params.num_grid_images)
    for start in range(0, len(numbers), batch_size):
        batch = numbers[start : start + batch_size]
        noise, predict = ImageNoise(params.seed, batch, model.image_shape, device), model.bind_classes(None, batch)
        with drawing(model.unet, params.precision, device):
            images = sample("ddim", predict, diffusion, noise, params.grid_sampling_steps)
        batches.append(to_pixels(images).cpu())
    return collect(torch.cat(batches))
