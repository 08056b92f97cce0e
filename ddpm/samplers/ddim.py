"""The DDIM sampler.

Data sheet
    source      Song, Meng & Ermon 2021, Eq. 12 and 16
    cost        one network call per step
    noise       none at eta = 0: the images are a function of x_T alone; eta = 1 draws as much as DDPM
    steps       1 … T; good from 20, little gain beyond 100
    prefer it   for nearly all sampling; use the ancestral sampler for the published result
"""

from collections.abc import Iterator

from ddpm.diffusion import GaussianDiffusion, NoiseModel
from ddpm.samplers.network import predict
from ddpm.samplers.noise import ImageNoise, require_eta
from ddpm.samplers.step import SamplerStep
from ddpm.samplers.timesteps import visit


def sample_ddim(
    model: NoiseModel,
    diffusion: GaussianDiffusion,
    noise: ImageNoise,
    num_sampling_steps: int,
    eta: float = 0.0,
    clip_x_0: bool = True,
) -> Iterator[SamplerStep]:
    """Yield the steps from noise to images: Song, Meng & Ermon 2021, Eq. 12 and 16.

    Args:
        model: predicts eps, v or x_0, as `diffusion.prediction` says, from (x_t, t).
        diffusion: the schedule that the model was trained on.
        noise: x_T and, for eta above 0, the noise of each step.
        num_sampling_steps: number of network calls, in 1 … T.
        eta: in [0, 1]; the share of the ancestral sampler's noise that is added.
        clip_x_0: keep x_0_pred in [-1, 1]; eps_pred then follows it.

    Yields:
        `num_sampling_steps` steps; the last one holds the images.

    Raises:
        ValueError: an argument lies outside its range.
    """
    require_eta(eta)
    timesteps, cumprods = visit(diffusion, num_sampling_steps)
    cumprods.append(1.0)  # the finished image
    x_t = noise.draw()
    for index, t in enumerate(timesteps):
        # 1. call the network
        output = predict(model, x_t, t)
        # 2. recover x_0; 3. clip it, and take the eps that it implies
        denoised = diffusion.denoise(output, x_t, t, clip_x_0)
        # 4. the variance sigma^2, Eq. 16
        cumprod, cumprod_prev = cumprods[index], cumprods[index + 1]
        variance = eta**2 * (1.0 - cumprod_prev) / (1.0 - cumprod) * (1.0 - cumprod / cumprod_prev)
        # 5. the mean, Eq. 12; 6. add noise
        x_t = cumprod_prev**0.5 * denoised.x_0_pred + (1.0 - cumprod_prev - variance) ** 0.5 * denoised.eps_pred
        if variance > 0.0:
            x_t = x_t + variance**0.5 * noise.draw()
        yield SamplerStep(index + 1, t, x_t, denoised.x_0_pred)
