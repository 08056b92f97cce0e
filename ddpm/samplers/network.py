"""The network call of a sampler's step."""

import torch
from torch import Tensor

from ddpm.checks import require_prediction
from ddpm.diffusion import Images, NoiseModel


@torch.no_grad()
def predict(model: NoiseModel, x_t: Images, t: int) -> Tensor:
    """Call the network without gradients, at one time step for all images.

    Gradients are off in this call alone. A sampler is a generator: if they were off around its loop, they would also be
    off in its caller's code between steps.

    Raises:
        ValueError: the network gives something else than an image for each image.
    """
    output = model(x_t, torch.full((len(x_t),), t, device=x_t.device))
    require_prediction(output, x_t)
    return output
