"""The DDPM ancestral sampler.

Data sheet
    source      Ho et al. 2020, Algorithm 2; fewer steps as in Nichol & Dhariwal 2021, section 4
    cost        one network call per step
    noise       stochastic: a fresh draw in every step but the last
    steps       1 … T; good from a few hundred, best at T
    prefer it   for the published result; DDIM reaches nearly the same in a tenth of the calls
"""

import math
from collections.abc import Iterator

import torch

from ddpm.diffusion import GaussianDiffusion, NoiseModel
from ddpm.samplers.network import predict
from ddpm.samplers.noise import ImageNoise
from ddpm.samplers.step import SamplerStep
from ddpm.samplers.timesteps import trailing_timesteps

_LARGEST_BETA = math.nextafter(1.0, 0.0)


def sample_ancestral(
    model: NoiseModel,
    diffusion: GaussianDiffusion,
    noise: ImageNoise,
    num_sampling_steps: int,
    clip_x_0: bool = True,
) -> Iterator[SamplerStep]:
    """Yield the steps from noise to images: Ho et al. 2020, Algorithm 2.

    Args:
        model: predicts eps, v or x_0, as `diffusion.prediction` says, from (x_t, t).
        diffusion: the schedule that the model was trained on.
        noise: x_T and the noise of each step.
        num_sampling_steps: number of network calls, in 1 … T.
        clip_x_0: keep x_0_pred in [-1, 1].

    Yields:
        `num_sampling_steps` steps; the last one holds the images.

    Raises:
        ValueError: `num_sampling_steps` lies outside 1 … T.
    """
    timesteps = trailing_timesteps(diffusion.num_timesteps, num_sampling_steps)
    respaced = respace_diffusion(diffusion, timesteps)
    x_t = noise.draw()
    for index, t in enumerate(timesteps):
        # 1. call the network
        output = predict(model, x_t, t)
        # 2. recover x_0; 3. clip it; 4. posterior mean
        step = respaced.p_mean_variance(output, x_t, num_sampling_steps - 1 - index, clip_x_0)
        # 5. add noise, except in the last step
        x_t = step.mean
        if index < num_sampling_steps - 1:
            # Variance and root in the dtype of the images, as if each had its own t; on the CPU: no GPU kernel.
            x_t = x_t + torch.tensor(step.variance, dtype=x_t.dtype).sqrt() * noise.draw()
        yield SamplerStep(index + 1, t, x_t, step.x_0_pred)


def respace_diffusion(diffusion: GaussianDiffusion, timesteps: list[int]) -> GaussianDiffusion:
    """Return the diffusion that visits only `timesteps` (falling), with the same alphas_cumprod there.

    Nichol & Dhariwal 2021, section 4: beta_i = 1 - alphas_cumprod_{t_i} / alphas_cumprod_{t_{i-1}}.
    """
    if len(timesteps) == diffusion.num_timesteps:
        return diffusion
    cumprod = diffusion.alphas_cumprod[torch.tensor(timesteps[::-1], device=diffusion.betas.device)]
    previous = torch.cat([torch.ones_like(cumprod[:1]), cumprod[:-1]])
    # If nearly all of the image is lost between two steps, float64 rounds beta to 1, which is no valid variance.
    betas = (1.0 - cumprod / previous).clamp(max=_LARGEST_BETA)
    return GaussianDiffusion(betas, diffusion.prediction)
