"""The DPM-Solver++(2M) sampler.

Data sheet
    source      Lu et al. 2022, "DPM-Solver++", Algorithm 2 (second order, multistep); with noise, its SDE-DPM-Solver++
    cost        one network call per step
    noise       none at eta = 0: the images are a function of x_T alone; eta = 1 solves the stochastic equation
    steps       1 … T; good from 20, little gain beyond 50; the first and the last step are of first order
    prefer it   for the fewest network calls; the ancestral sampler for the published result
"""

import math
from collections.abc import Iterator

from ddpm.diffusion import GaussianDiffusion, NoiseModel
from ddpm.samplers.network import predict
from ddpm.samplers.noise import ImageNoise, require_eta
from ddpm.samplers.step import SamplerStep
from ddpm.samplers.timesteps import visit


def sample_dpm_solver(
    model: NoiseModel,
    diffusion: GaussianDiffusion,
    noise: ImageNoise,
    num_sampling_steps: int,
    eta: float = 0.0,
    clip_x_0: bool = True,
) -> Iterator[SamplerStep]:
    """Yield the steps from noise to images: Lu et al. 2022, Algorithm 2.

    The ordinary differential equation of the diffusion is solved in lambda_t = log(alpha_t / sigma_t), half the
    logarithm of the signal-to-noise ratio, with alpha_t = sqrt(alphas_cumprod_t), sigma_t = sqrt(1 - alphas_cumprod_t).

    Args:
        model: predicts eps, v or x_0, as `diffusion.prediction` says, from (x_t, t).
        diffusion: the schedule that the model was trained on.
        noise: x_T and, for eta above 0, the noise of each step.
        num_sampling_steps: number of network calls, in 1 … T.
        eta: in [0, 1]; 0 solves the ordinary, 1 the stochastic differential equation.
        clip_x_0: keep x_0_pred in [-1, 1].

    Yields:
        `num_sampling_steps` steps; the last one holds the images.

    Raises:
        ValueError: an argument lies outside its range.
    """
    require_eta(eta)
    timesteps, cumprods = visit(diffusion, num_sampling_steps)
    alphas = [math.sqrt(cumprod) for cumprod in cumprods]
    sigmas = [math.sqrt(1.0 - cumprod) for cumprod in cumprods]
    lambdas = [math.log(alpha / sigma) for alpha, sigma in zip(alphas, sigmas, strict=True)]

    x_t = noise.draw()
    previous = None
    for i, t in enumerate(timesteps):
        # 1. predict x_0
        x_0_pred = diffusion.recover_x_0(predict(model, x_t, t), x_t, t, clip_x_0)
        if i == num_sampling_steps - 1:
            x_t = x_0_pred  # sigma = 0: the equation of step 3 in the limit
        else:
            h = lambdas[i + 1] - lambdas[i]
            # 2. extrapolate it from the last two predictions, to the middle of the step
            extrapolated = x_0_pred
            if previous is not None:
                r = (lambdas[i] - lambdas[i - 1]) / h
                extrapolated = x_0_pred + (x_0_pred - previous) / (2.0 * r)
            # 3. the exact solution for that constant x_0; 4. add noise
            kept = sigmas[i + 1] / sigmas[i] * math.exp(-eta * h)
            x_t = kept * x_t - alphas[i + 1] * math.expm1(-(1.0 + eta) * h) * extrapolated
            if eta > 0.0:
                x_t = x_t + sigmas[i + 1] * math.sqrt(-math.expm1(-2.0 * eta * h)) * noise.draw()
        previous = x_0_pred
        yield SamplerStep(i + 1, t, x_t, x_0_pred)
