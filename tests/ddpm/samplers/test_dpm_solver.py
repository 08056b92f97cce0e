"""The DPM-Solver++(2M) sampler: its whole trajectory equal to that of diffusers, and of second order."""

import itertools

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from ddpm import GaussianDiffusion, ImageNoise, cosine_betas, linear_betas
from ddpm.samplers.ddim import sample_ddim
from ddpm.samplers.dpm_solver import sample_dpm_solver

SHAPE = (2, 3, 4, 4)
PREDICTIONS = [("eps", "epsilon"), ("v", "v_prediction"), ("x_0", "sample")]

CASES = [
    # T, steps (from 15 on diffusers knows fewer reasons for a last step of first order), last variance
    (50, 50, 0.2),
    (50, 10, 0.2),
    (50, 7, 0.2),
    (50, 2, 0.2),
    (50, 1, 0.2),
    (1000, 25, 0.02),
]


def draw(dtype):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def scheduler_of_diffusers(num_timesteps, beta_end, prediction_type, algorithm_type="dpmsolver++"):
    return DPMSolverMultistepScheduler(
        num_timesteps,
        beta_end=beta_end,
        prediction_type=prediction_type,
        algorithm_type=algorithm_type,
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )


def trajectory_of_diffusers(scheduler, model, x_t, noises=()):
    """x_t and x_0_pred of each step, from x_T and the noises of the steps."""
    steps = []
    for t, noise in itertools.zip_longest(scheduler.timesteps.tolist(), noises):
        x_t = scheduler.step(model(x_t, torch.full((len(x_t),), t)), t, x_t, variance_noise=noise).prev_sample
        steps.append((t, x_t, scheduler.model_outputs[-1]))
    return steps


@pytest.mark.parametrize(("num_timesteps", "num_sampling_steps", "beta_end"), CASES)
@pytest.mark.parametrize(("prediction", "name_in_diffusers"), PREDICTIONS)
def test_trajectory_equals_that_of_diffusers_in_float64(
    num_timesteps, num_sampling_steps, beta_end, prediction, name_in_diffusers, bent_model, given_noise, monkeypatch
):
    scheduler = scheduler_of_diffusers(num_timesteps, beta_end, name_in_diffusers)
    scheduler.set_timesteps(num_sampling_steps)
    # Its tables and steps in float64: what remains is the order of operations.
    betas = torch.linspace(1e-4, beta_end, num_timesteps, dtype=torch.float64)
    cumprod = torch.cumprod(1.0 - betas, 0)[scheduler.timesteps]
    scheduler.sigmas = torch.cat([((1.0 - cumprod) / cumprod).sqrt(), torch.zeros(1, dtype=torch.float64)])
    x_t = draw(torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)  # which it casts to within a step
        expected = trajectory_of_diffusers(scheduler, bent_model, x_t)
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end), prediction)
    noise = given_noise([x_t])
    steps = list(sample_dpm_solver(bent_model, diffusion, noise, num_sampling_steps, clip_x_0=False))
    assert len(steps) == len(expected) == num_sampling_steps
    for number, (step, (t, x_t, x_0_pred)) in enumerate(zip(steps, expected, strict=True), start=1):
        assert (step.number, step.t) == (number, t)
        assert x_t.dtype == torch.float64
        # Of eps, x_0 grows to hundreds.
        torch.testing.assert_close(step.x_0_pred, x_0_pred, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step.x_t, x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("num_timesteps", "num_sampling_steps", "beta_end"), CASES)
@pytest.mark.parametrize(("prediction", "name_in_diffusers"), PREDICTIONS[1:])
def test_trajectory_equals_that_of_diffusers_in_float32(
    num_timesteps, num_sampling_steps, beta_end, prediction, name_in_diffusers, bent_model, given_noise
):
    scheduler = scheduler_of_diffusers(num_timesteps, beta_end, name_in_diffusers)
    scheduler.set_timesteps(num_sampling_steps)
    x_t = draw(torch.float32)
    expected = trajectory_of_diffusers(scheduler, bent_model, x_t)
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end), prediction)
    steps = sample_dpm_solver(bent_model, diffusion, given_noise([x_t]), num_sampling_steps, clip_x_0=False)
    for step, (_, x_t, x_0_pred) in zip(steps, expected, strict=True):
        torch.testing.assert_close(step.x_0_pred, x_0_pred, rtol=0, atol=1e-4)
        torch.testing.assert_close(step.x_t, x_t, rtol=0, atol=1e-4)


def test_clipping_keeps_each_x_0_pred_in_range_before_the_step_is_made(bent_model, given_noise):
    diffusion = GaussianDiffusion(linear_betas(50, 1e-4, 0.2))
    x_t = draw(torch.float64)
    unclipped = next(sample_dpm_solver(bent_model, diffusion, given_noise([x_t]), 10, clip_x_0=False))
    clipped = next(sample_dpm_solver(bent_model, diffusion, given_noise([x_t]), 10))
    assert float(unclipped.x_0_pred.abs().max()) > 1.0  # there is something to clip
    torch.testing.assert_close(clipped.x_0_pred, unclipped.x_0_pred.clamp(-1.0, 1.0), rtol=0, atol=1e-12)
    # A step is linear in x_0_pred, so a clipped and an unclipped one differ by its coefficient: 1 - its signal.
    ratio = (clipped.x_t - unclipped.x_t) / (clipped.x_0_pred - unclipped.x_0_pred)
    changed = ratio[unclipped.x_0_pred.abs() > 1.0]
    torch.testing.assert_close(changed, changed[0].expand_as(changed), rtol=1e-9, atol=0)


@pytest.mark.parametrize("betas", [linear_betas(100, 1e-4, 0.1), cosine_betas(100)], ids=["linear", "cosine"])
@pytest.mark.parametrize("num_sampling_steps", [1, 2, 7, 100])
def test_a_perfect_model_of_one_image_draws_that_image(num_sampling_steps, betas, given_noise):
    diffusion = GaussianDiffusion(betas)
    x_0 = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.0 - 1.0

    def model(x_t, t):
        return diffusion.predict_eps(x_t, t, x_0)

    for step in sample_dpm_solver(model, diffusion, given_noise([draw(torch.float64)]), num_sampling_steps):
        torch.testing.assert_close(step.x_0_pred, x_0, rtol=0, atol=1e-9)
    torch.testing.assert_close(step.x_t, x_0, rtol=0, atol=1e-9)


def test_it_is_of_second_order(given_noise):
    """Where x_0 ~ N(0.2, 0.3^2), the best prediction of x_0 and the path of each pixel are known."""
    diffusion = GaussianDiffusion(linear_betas(1000), "x_0")
    mean, std = 0.2, 0.3

    def spread(cumprod):
        return (cumprod * std**2 + 1.0 - cumprod).sqrt()

    def model(x_t, t):
        cumprod = diffusion.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        return mean + cumprod.sqrt() * std**2 / spread(cumprod) ** 2 * (x_t - cumprod.sqrt() * mean)

    x_t = draw(torch.float64)
    first, later = diffusion.alphas_cumprod[-1], diffusion.alphas_cumprod[199]
    # A pixel keeps its place in the distribution, which narrows from noise to data.
    exact = later.sqrt() * mean + spread(later) * (x_t - first.sqrt() * mean) / spread(first)

    def error_at_199(sampler, num_sampling_steps):
        steps = list(sampler(model, diffusion, given_noise([x_t]), num_sampling_steps, clip_x_0=False))
        (before,) = (one for one, other in itertools.pairwise(steps) if other.t == 199)
        return float((before.x_t - exact).abs().max())

    # With twice the steps, a quarter of the error; a half with DDIM, which is of first order.
    assert error_at_199(sample_dpm_solver, 80) / error_at_199(sample_dpm_solver, 40) == pytest.approx(0.25, abs=0.02)
    assert error_at_199(sample_ddim, 80) / error_at_199(sample_ddim, 40) == pytest.approx(0.5, abs=0.02)
    assert error_at_199(sample_dpm_solver, 40) < 0.2 * error_at_199(sample_ddim, 40)


def test_no_noise_is_drawn_after_x_t(bent_model, given_noise):
    noise = given_noise([draw(torch.float64)])
    assert len(list(sample_dpm_solver(bent_model, GaussianDiffusion(linear_betas(50)), noise, 10))) == 10
    assert noise.num_draws == 1


@pytest.mark.parametrize("num_sampling_steps", [0, 51])
def test_a_wrong_number_of_steps_is_an_error(num_sampling_steps, bent_model):
    diffusion = GaussianDiffusion(linear_betas(50))
    with pytest.raises(ValueError, match="num_sampling_steps must lie in 1 … 50"):
        next(sample_dpm_solver(bent_model, diffusion, ImageNoise(0, [0], (3, 4, 4)), num_sampling_steps))


@pytest.mark.parametrize(("num_timesteps", "num_sampling_steps", "beta_end"), CASES)
@pytest.mark.parametrize(("prediction", "name_in_diffusers"), PREDICTIONS[1:])
def test_at_eta_1_the_trajectory_is_that_of_the_stochastic_solver_of_diffusers(
    num_timesteps, num_sampling_steps, beta_end, prediction, name_in_diffusers, bent_model, given_noise
):
    scheduler = scheduler_of_diffusers(num_timesteps, beta_end, name_in_diffusers, "sde-dpmsolver++")
    scheduler.set_timesteps(num_sampling_steps)
    generator = torch.Generator().manual_seed(6)
    noises = [torch.randn(SHAPE, generator=generator) for _ in range(num_sampling_steps)]
    expected = trajectory_of_diffusers(scheduler, bent_model, noises[0], [*noises[1:], noises[0]])
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end), prediction)
    noise = given_noise(noises)
    steps = list(sample_dpm_solver(bent_model, diffusion, noise, num_sampling_steps, eta=1.0, clip_x_0=False))
    for step, (_, x_t, x_0_pred) in zip(steps, expected, strict=True):
        torch.testing.assert_close(step.x_0_pred, x_0_pred, rtol=0, atol=1e-4)
        torch.testing.assert_close(step.x_t, x_t, rtol=0, atol=1e-4)
    assert noise.num_draws == num_sampling_steps  # x_T, and each step but the last


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_an_eta_outside_its_range_is_an_error(eta, bent_model):
    diffusion = GaussianDiffusion(linear_betas(50))
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
        next(sample_dpm_solver(bent_model, diffusion, ImageNoise(0, [0], (3, 4, 4)), 10, eta))
