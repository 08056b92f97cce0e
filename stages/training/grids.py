"""Samples of the averaged weights, drawn during training from the same noise each time."""

from torch import Tensor

from ddpm.diffusion import build_diffusion
from ddpm.distributed import collect, share
from ddpm.images import Picture, sample_grid
from ddpm.published import PublishedModel
from ddpm.unet import UNet
from stages.training.experiment import Experiment


def draw_grid(experiment: Experiment) -> Picture:
    """Draw samples as one picture, with the names of their classes, if the network knows classes."""
    pixels = draw_samples(experiment, experiment.params.num_grid_images)
    return sample_grid(pixels, [each.name for each in experiment.classes])


def draw_samples(experiment: Experiment, count: int) -> Tensor:
    """Draw `count` images of all classes in turn; each process draws its share, and returns all.

    Returns:
        Bytes on the CPU, shape (count, 3, height, width).
    """
    params, network = experiment.params, experiment.state.ema.module
    assert isinstance(network, UNet)
    diffusion = build_diffusion(params.diffusion).to(experiment.device)
    model = PublishedModel(network, diffusion, experiment.image_size, experiment.classes)
    pixels = model.draw(
        range(count)[share(count)],
        seed=params.seed,
        sampler="ddim",
        steps=params.grid_sampling_steps,
        batch_size=max(params.batch_size, params.num_grid_images),
        precision=params.precision,
    )
    return collect(pixels)
