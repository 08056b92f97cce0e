"""The network call of a step."""

import torch
from torch import Tensor

from ddpm.diffusion import Images, NoiseModel


@torch.no_grad()
def predict(model: NoiseModel, x_t: Images, t: int) -> Tensor:
    """Call the network without gradients, at one time step for all images.

    Gradients are off in this call alone: a sampler is a generator, and were they off around its loop, they would stay
    so in its caller's code from step to step.
    """
    return model(x_t, torch.full((len(x_t),), t, device=x_t.device))
