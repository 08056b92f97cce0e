"""The DPM-Solver++(2M) sampler: its whole trajectory equals that of diffusers, and it is of second order."""

import itertools

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from ddpm import GaussianDiffusion, linear_betas
from ddpm.samplers.ddim import sample_ddim
from ddpm.samplers.dpm_solver import sample_dpm_solver
from tests.ddpm.small_networks import PREDICTIONS, GivenNoise, bent_model, noise

CASES = [(50, 50, 0.2), (50, 10, 0.2), (50, 7, 0.2), (50, 2, 0.2), (50, 1, 0.2), (1000, 25, 0.02)]


@pytest.mark.parametrize(("num_timesteps", "num_sampling_steps", "beta_end"), CASES)
@pytest.mark.parametrize(("prediction", "name_in_diffusers"), PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_trajectory_equals_that_of_diffusers(
    num_timesteps, num_sampling_steps, beta_end, prediction, name_in_diffusers, eta, monkeypatch
):
    scheduler = DPMSolverMultistepScheduler(
        num_timesteps,
        beta_end=beta_end,
        prediction_type=name_in_diffusers,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        lower_order_final=True,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(num_sampling_steps)
    # Its tables and steps in float64: what remains is the order of operations.
    betas = torch.linspace(1e-4, beta_end, num_timesteps, dtype=torch.float64)
    cumprod = torch.cumprod(1.0 - betas, 0)[scheduler.timesteps]
    scheduler.sigmas = torch.cat([((1.0 - cumprod) / cumprod).sqrt(), torch.zeros(1, dtype=torch.float64)])
    noises = noise(num_sampling_steps, 2, 3, 4, 4, seed=5, dtype=torch.float64)
    x_t, expected = noises[0], []
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)  # which it casts to within a step
        for t, drawn in zip(scheduler.timesteps.tolist(), [*noises[1:], noises[0]], strict=True):
            output = bent_model(x_t, torch.full((2,), t))
            x_t = scheduler.step(output, t, x_t, variance_noise=drawn).prev_sample
            expected.append((t, x_t, scheduler.model_outputs[-1]))
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end), prediction)
    steps = sample_dpm_solver(bent_model, diffusion, GivenNoise(noises), num_sampling_steps, eta, clip_x_0=False)
    for number, (step, (t, x_t, x_0_pred)) in enumerate(zip(steps, expected, strict=True), start=1):
        assert (step.number, step.t) == (number, t) and x_t.dtype == torch.float64
        # If eps is predicted, x_0 grows to hundreds.
        torch.testing.assert_close(step.x_0_pred, x_0_pred, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step.x_t, x_t, rtol=1e-9, atol=1e-9)


def test_clipping_keeps_each_x_0_pred_in_range_before_the_step_is_made():
    diffusion = GaussianDiffusion(linear_betas(50, 1e-4, 0.2))
    x_t = noise(2, 3, 4, 4, dtype=torch.float64)
    unclipped = next(sample_dpm_solver(bent_model, diffusion, GivenNoise([x_t]), 10, clip_x_0=False))
    clipped = next(sample_dpm_solver(bent_model, diffusion, GivenNoise([x_t]), 10))
    assert float(unclipped.x_0_pred.abs().max()) > 1.0  # there is something to clip
    torch.testing.assert_close(clipped.x_0_pred, unclipped.x_0_pred.clamp(-1.0, 1.0), rtol=0, atol=1e-12)
    # A step is linear in x_0_pred, so a clipped and an unclipped one differ by its coefficient: 1 - its signal.
    ratio = (clipped.x_t - unclipped.x_t) / (clipped.x_0_pred - unclipped.x_0_pred)
    changed = ratio[unclipped.x_0_pred.abs() > 1.0]
    torch.testing.assert_close(changed, changed[0].expand_as(changed), rtol=1e-9, atol=0)


def test_it_is_of_second_order():
    """Where x_0 ~ N(0.2, 0.3^2), the best prediction of x_0 and the path of each pixel are known."""
    diffusion = GaussianDiffusion(linear_betas(1000), "x_0")
    mean, std = 0.2, 0.3

    def spread(cumprod):
        return (cumprod * std**2 + 1.0 - cumprod).sqrt()

    def model(x_t, t):
        cumprod = diffusion.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        return mean + cumprod.sqrt() * std**2 / spread(cumprod) ** 2 * (x_t - cumprod.sqrt() * mean)

    x_t = noise(2, 3, 4, 4, dtype=torch.float64)
    first, later = diffusion.alphas_cumprod[-1], diffusion.alphas_cumprod[199]
    # A pixel keeps its place in the distribution, which narrows from noise to data.
    exact = later.sqrt() * mean + spread(later) * (x_t - first.sqrt() * mean) / spread(first)

    def error_at_199(sampler, num_sampling_steps):
        steps = list(sampler(model, diffusion, GivenNoise([x_t]), num_sampling_steps, clip_x_0=False))
        (before,) = (one for one, other in itertools.pairwise(steps) if other.t == 199)
        return float((before.x_t - exact).abs().max())

    # With twice the steps, a quarter of the error; a half with DDIM, which is of first order.
    assert error_at_199(sample_dpm_solver, 80) / error_at_199(sample_dpm_solver, 40) == pytest.approx(0.25, abs=0.02)
    assert error_at_199(sample_ddim, 80) / error_at_199(sample_ddim, 40) == pytest.approx(0.5, abs=0.02)
    assert error_at_199(sample_dpm_solver, 40) < 0.2 * error_at_199(sample_ddim, 40)
