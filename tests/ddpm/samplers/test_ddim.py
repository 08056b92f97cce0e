"""The DDIM sampler: its whole trajectory equals that of diffusers, and at eta = 1 that of the ancestral sampler."""

import pytest
import torch
from diffusers import DDIMScheduler

from ddpm import GaussianDiffusion, cosine_betas, linear_betas
from ddpm.samplers.ancestral import sample_ancestral
from ddpm.samplers.ddim import sample_ddim
from tests.ddpm.small_networks import PREDICTIONS, GivenNoise, bent_model, noise


def draws(count):
    return noise(count, 2, 3, 4, 4, seed=5, dtype=torch.float64)


@pytest.mark.parametrize(
    # diffusers places the previous step right if the steps divide T.
    ("num_timesteps", "num_sampling_steps", "beta_end"),
    [(50, 50, 0.2), (50, 10, 0.2), (50, 1, 0.2), (1000, 25, 0.02)],
)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("prediction", "name_in_diffusers"), PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_trajectory_equals_that_of_diffusers(
    num_timesteps, num_sampling_steps, beta_end, clip, eta, prediction, name_in_diffusers
):
    scheduler = DDIMScheduler(
        num_timesteps, clip_sample=clip, timestep_spacing="trailing", prediction_type=name_in_diffusers
    )
    # Its tables in float64: what remains is the order of operations.
    betas = torch.linspace(1e-4, beta_end, num_timesteps, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1.0 - betas, 0)
    scheduler.set_timesteps(num_sampling_steps)
    noises = draws(num_sampling_steps)
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end), prediction)
    steps = list(sample_ddim(bent_model, diffusion, GivenNoise(noises), num_sampling_steps, eta, clip_x_0=clip))
    x_t = noises[0]
    # The last step's variance is zero: any noise will do.
    pairs = zip(steps, scheduler.timesteps.tolist(), [*noises[1:], noises[0]], strict=True)
    for number, (step, t, drawn) in enumerate(pairs, start=1):
        output = bent_model(x_t, torch.full((2,), t))
        # clip_sample alone clips x_0 and keeps the eps of the unclipped one: here eps follows.
        expected = scheduler.step(output, t, x_t, eta=eta, use_clipped_model_output=clip, variance_noise=drawn)
        x_t = expected.prev_sample
        assert (step.number, step.t) == (number, t)
        # Without clipping, x_0 grows to hundreds.
        torch.testing.assert_close(step.x_0_pred, expected.pred_original_sample, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step.x_t, x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("num_timesteps", "num_sampling_steps"), [(50, 50), (50, 10), (50, 7), (1000, 25)])
def test_at_eta_1_it_is_the_ancestral_sampler(num_timesteps, num_sampling_steps):
    # Song, Meng & Ermon 2021, section 4.1. Their code shares nothing but the time steps.
    diffusion = GaussianDiffusion(cosine_betas(num_timesteps))
    noises = draws(num_sampling_steps)
    ddim = sample_ddim(bent_model, diffusion, GivenNoise(noises), num_sampling_steps, eta=1.0)
    ancestral = sample_ancestral(bent_model, diffusion, GivenNoise(noises), num_sampling_steps)
    for one, other in zip(ddim, ancestral, strict=True):
        torch.testing.assert_close(one.x_0_pred, other.x_0_pred, rtol=0, atol=1e-8)
        torch.testing.assert_close(one.x_t, other.x_t, rtol=0, atol=1e-8)
