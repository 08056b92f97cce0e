"""The time steps that samplers visit, and their whole trajectories, which equal those of diffusers."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_ddpm

from ddpm import GaussianDiffusion, cosine_betas, linear_betas
from ddpm.samplers.ancestral import respace_diffusion, sample_ancestral
from ddpm.samplers.ddim import sample_ddim
from ddpm.samplers.dpm_solver import sample_dpm_solver
from ddpm.samplers.timesteps import trailing_timesteps
from tests.ddpm.small_networks import PREDICTIONS, GivenNoise, bent_model, noise

with_clipping_or_without = pytest.mark.parametrize("clip", [True, False])
for_each_prediction = pytest.mark.parametrize(("prediction", "name_in_diffusers"), PREDICTIONS)


def for_each_length(*num_steps_of_50):
    """Parametrize the time steps in all, those sampled, and the last beta."""
    cases = [*((50, num_steps, 0.2) for num_steps in num_steps_of_50), (1000, 25, 0.02)]
    return pytest.mark.parametrize(("num_timesteps", "num_steps", "beta_end"), cases)


def draws(count):
    return noise(count, 2, 3, 4, 4, seed=5, dtype=torch.float64)


def alphas_cumprod(num_timesteps, beta_end):
    """Return the schedulers' table in float64: what remains between them and us is the order of operations."""
    return torch.cumprod(1.0 - torch.linspace(1e-4, beta_end, num_timesteps, dtype=torch.float64), 0)


def assert_same_steps(steps, expected):
    for number, (step, (t, x_t, x_0_pred)) in enumerate(zip(steps, expected, strict=True), start=1):
        assert (step.number, step.t) == (number, t) and x_t.dtype == torch.float64
        # Without clipping, x_0 grows to hundreds.
        torch.testing.assert_close(step.x_0_pred, x_0_pred, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step.x_t, x_t, rtol=1e-9, atol=1e-9)


@for_each_length(50, 10, 7, 1)
@with_clipping_or_without
@for_each_prediction
def test_the_ancestral_trajectory(num_timesteps, num_steps, beta_end, clip, prediction, name_in_diffusers, monkeypatch):
    scheduler = DDPMScheduler(
        num_timesteps,
        variance_type="fixed_small",
        clip_sample=clip,
        timestep_spacing="trailing",
        prediction_type=name_in_diffusers,
    )
    scheduler.alphas_cumprod = alphas_cumprod(num_timesteps, beta_end)
    scheduler.set_timesteps(num_steps)
    noises = draws(num_steps)
    # The last step of a shortened walk lies at t > 0, where diffusers adds noise of variance 1e-20: it gets zeros.
    pending = [*noises[1:], torch.zeros_like(noises[0])]
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: pending.pop(0))
    x_t, expected = noises[0], []
    for t in scheduler.timesteps.tolist():
        x_t, x_0_pred = scheduler.step(bent_model(x_t, torch.full((2,), t)), t, x_t, return_dict=False)
        expected.append((t, x_t, x_0_pred))
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end), prediction)
    steps = list(sample_ancestral(bent_model, diffusion, GivenNoise(noises), num_steps, clip_x_0=clip))
    assert_same_steps(steps, expected)
    if clip and prediction == "eps" and num_steps == 50:
        clipped = [float((step.x_0_pred.abs() == 1.0).double().mean()) for step in steps]
        assert min(clipped) < 0.1 and max(clipped) > 0.2, "there is nothing to clip"


def test_a_respaced_diffusion_has_the_same_alphas_cumprod_where_it_steps():
    diffusion = GaussianDiffusion(cosine_betas(100), "v")
    respaced = respace_diffusion(diffusion, [99, 66, 32, 5])
    assert respaced.prediction == "v"
    expected = diffusion.alphas_cumprod[[5, 32, 66, 99]]
    torch.testing.assert_close(respaced.alphas_cumprod, expected, rtol=1e-12, atol=1e-15)


@for_each_length(50, 10, 1)  # diffusers places the previous step right if the steps divide T
@with_clipping_or_without
@for_each_prediction
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_ddim_trajectory(num_timesteps, num_steps, beta_end, clip, prediction, name_in_diffusers, eta):
    scheduler = DDIMScheduler(
        num_timesteps, clip_sample=clip, timestep_spacing="trailing", prediction_type=name_in_diffusers
    )
    scheduler.alphas_cumprod = alphas_cumprod(num_timesteps, beta_end)
    scheduler.set_timesteps(num_steps)
    noises = draws(num_steps)
    x_t, expected = noises[0], []
    # The last step's variance is zero: any noise will do.
    for t, drawn in zip(scheduler.timesteps.tolist(), [*noises[1:], noises[0]], strict=True):
        output = bent_model(x_t, torch.full((2,), t))
        # clip_sample alone clips x_0 and keeps the eps of the unclipped one: here eps follows.
        options = {"eta": eta, "use_clipped_model_output": clip, "variance_noise": drawn}
        x_t, x_0_pred = scheduler.step(output, t, x_t, **options, return_dict=False)
        expected.append((t, x_t, x_0_pred))
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end), prediction)
    steps = sample_ddim(bent_model, diffusion, GivenNoise(noises), num_steps, eta, clip_x_0=clip)
    assert_same_steps(steps, expected)


@pytest.mark.parametrize(("num_timesteps", "num_steps"), [(50, 50), (50, 10), (50, 7), (1000, 25)])
def test_at_eta_1_ddim_is_the_ancestral_sampler(num_timesteps, num_steps):
    # Song, Meng & Ermon 2021, section 4.1. Their code shares nothing but the time steps.
    diffusion = GaussianDiffusion(cosine_betas(num_timesteps))
    noises = draws(num_steps)
    ddim = sample_ddim(bent_model, diffusion, GivenNoise(noises), num_steps, eta=1.0)
    ancestral = sample_ancestral(bent_model, diffusion, GivenNoise(noises), num_steps)
    for one, other in zip(ddim, ancestral, strict=True):
        torch.testing.assert_close(one.x_0_pred, other.x_0_pred, rtol=0, atol=1e-8)
        torch.testing.assert_close(one.x_t, other.x_t, rtol=0, atol=1e-8)


@for_each_length(50, 10, 7, 2, 1)
@for_each_prediction
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_dpm_solver_trajectory(num_timesteps, num_steps, beta_end, prediction, name_in_diffusers, eta, monkeypatch):
    scheduler = DPMSolverMultistepScheduler(
        num_timesteps,
        beta_end=beta_end,
        prediction_type=name_in_diffusers,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        lower_order_final=True,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(num_steps)
    cumprod = alphas_cumprod(num_timesteps, beta_end)[scheduler.timesteps]
    scheduler.sigmas = torch.cat([((1.0 - cumprod) / cumprod).sqrt(), torch.zeros(1, dtype=torch.float64)])
    noises = draws(num_steps)
    x_t, expected = noises[0], []
    with monkeypatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)  # which it casts to within a step
        for t, drawn in zip(scheduler.timesteps.tolist(), [*noises[1:], noises[0]], strict=True):
            output = bent_model(x_t, torch.full((2,), t))
            x_t = scheduler.step(output, t, x_t, variance_noise=drawn).prev_sample
            expected.append((t, x_t, scheduler.model_outputs[-1]))
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end), prediction)
    steps = sample_dpm_solver(bent_model, diffusion, GivenNoise(noises), num_steps, eta, clip_x_0=False)
    assert_same_steps(steps, expected)


def test_dpm_solver_clips_each_x_0_pred_before_the_step_is_made():
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


def test_dpm_solver_is_of_second_order():
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

    def error_at_199(sampler, num_steps):
        steps = list(sampler(model, diffusion, GivenNoise([x_t]), num_steps, clip_x_0=False))
        (before,) = (one for one, other in itertools.pairwise(steps) if other.t == 199)
        return float((before.x_t - exact).abs().max())

    # With twice the steps, a quarter of the error; a half with DDIM, which is of first order.
    assert error_at_199(sample_dpm_solver, 80) / error_at_199(sample_dpm_solver, 40) == pytest.approx(0.25, abs=0.02)
    assert error_at_199(sample_ddim, 80) / error_at_199(sample_ddim, 40) == pytest.approx(0.5, abs=0.02)
    assert error_at_199(sample_dpm_solver, 40) < 0.2 * error_at_199(sample_ddim, 40)


@pytest.mark.parametrize(
    ("num_timesteps", "num_sampling_steps", "expected"),
    [
        (1, 1, [0]),
        (10, 1, [9]),
        (10, 3, [9, 6, 2]),  # 10, 6.67, 3.33, rounded, less 1
        (10, 5, [9, 7, 5, 3, 1]),
        (1000, 4, [999, 749, 499, 249]),
    ],
)
def test_some_choices_of_time_steps_by_hand(num_timesteps, num_sampling_steps, expected):
    assert trailing_timesteps(num_timesteps, num_sampling_steps) == expected


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 50, 97])
def test_time_steps_fall_strictly_from_the_last_one_in_even_gaps(num_timesteps):
    for num_sampling_steps in range(1, num_timesteps + 1):
        timesteps = trailing_timesteps(num_timesteps, num_sampling_steps)
        assert len(timesteps) == num_sampling_steps
        assert timesteps[0] == num_timesteps - 1
        gaps = [a - b for a, b in zip(timesteps, [*timesteps[1:], -1], strict=True)]
        even = num_timesteps / num_sampling_steps
        assert all(gap >= 1 and abs(gap - even) <= 1 for gap in gaps)
