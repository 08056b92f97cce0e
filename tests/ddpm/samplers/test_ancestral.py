"""The ancestral sampler: its whole trajectory equals that of diffusers."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from ddpm import GaussianDiffusion, cosine_betas, linear_betas
from ddpm.samplers.ancestral import respace_diffusion, sample_ancestral
from tests.ddpm.small_networks import PREDICTIONS, GivenNoise, bent_model, noise


@pytest.mark.parametrize(
    ("num_timesteps", "num_sampling_steps", "beta_end"),
    [(50, 50, 0.2), (50, 10, 0.2), (50, 7, 0.2), (50, 1, 0.2), (1000, 25, 0.02)],
)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("prediction", "name_in_diffusers"), PREDICTIONS)
def test_the_trajectory_equals_that_of_diffusers(
    num_timesteps, num_sampling_steps, beta_end, clip, prediction, name_in_diffusers, monkeypatch
):
    scheduler = DDPMScheduler(
        num_timesteps,
        variance_type="fixed_small",
        clip_sample=clip,
        timestep_spacing="trailing",
        prediction_type=name_in_diffusers,
    )
    # Its tables in float64: what remains is the order of operations.
    betas = torch.linspace(1e-4, beta_end, num_timesteps, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1.0 - betas, 0)
    scheduler.set_timesteps(num_sampling_steps)
    noises = noise(num_sampling_steps, 2, 3, 4, 4, seed=5, dtype=torch.float64)
    # The last step of a shortened walk lies at t > 0, where diffusers adds noise of variance 1e-20: it gets zeros.
    pending = [*noises[1:], torch.zeros_like(noises[0])]
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: pending.pop(0))

    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end), prediction)
    steps = list(sample_ancestral(bent_model, diffusion, GivenNoise(noises), num_sampling_steps, clip_x_0=clip))
    x_t = noises[0]
    for number, (step, t) in enumerate(zip(steps, scheduler.timesteps.tolist(), strict=True), start=1):
        expected = scheduler.step(bent_model(x_t, torch.full((2,), t)), t, x_t)
        x_t = expected.prev_sample
        assert (step.number, step.t) == (number, t)
        # Without clipping, x_0 grows to hundreds.
        torch.testing.assert_close(step.x_0_pred, expected.pred_original_sample, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step.x_t, x_t, rtol=1e-9, atol=1e-9)
    if clip and prediction == "eps" and num_sampling_steps == 50:
        clipped = [float((step.x_0_pred.abs() == 1.0).double().mean()) for step in steps]
        assert min(clipped) < 0.1 and max(clipped) > 0.2, "there is nothing to clip"


def test_a_respaced_diffusion_has_the_same_alphas_cumprod_where_it_steps():
    diffusion = GaussianDiffusion(cosine_betas(100), "v")
    respaced = respace_diffusion(diffusion, [99, 66, 32, 5])
    assert respaced.prediction == "v"
    expected = diffusion.alphas_cumprod[[5, 32, 66, 99]]
    torch.testing.assert_close(respaced.alphas_cumprod, expected, rtol=1e-12, atol=1e-15)
