"""The ancestral sampler: its whole trajectory equal to that of diffusers; and what a perfect model draws."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from ddpm import GaussianDiffusion, ImageNoise, cosine_betas, linear_betas
from ddpm.samplers.ancestral import respace_diffusion, sample_ancestral

SHAPE = (2, 3, 4, 4)


def draws(count, dtype, shape=SHAPE):
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def trajectory_of_diffusers(scheduler, model, noises, num_sampling_steps, monkeypatch):
    """x_t and x_0_pred of each step, from the noises x_T and those of the steps."""
    # The last step of a shortened walk lies at t > 0, where diffusers adds noise of variance 1e-20: it gets zeros.
    pending = [*noises[1:], torch.zeros_like(noises[0])]
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: pending.pop(0))
    scheduler.set_timesteps(num_sampling_steps)
    x_t, steps = noises[0], []
    for t in scheduler.timesteps.tolist():
        step = scheduler.step(model(x_t, torch.full((len(x_t),), t)), t, x_t)
        x_t = step.prev_sample
        steps.append((t, x_t, step.pred_original_sample))
    return steps


CASES = [
    # T, steps, last variance; the T = 50 schedules are steep, so that they too end in noise
    (50, 50, 0.2),
    (50, 10, 0.2),
    (50, 7, 0.2),
    (50, 1, 0.2),
    (1000, 25, 0.02),
]


@pytest.mark.parametrize(("num_timesteps", "num_sampling_steps", "beta_end"), CASES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("prediction", "name_in_diffusers"), [("eps", "epsilon"), ("v", "v_prediction"), ("x_0", "sample")]
)
def test_trajectory_equals_that_of_diffusers_in_float64(
    num_timesteps,
    num_sampling_steps,
    beta_end,
    clip,
    prediction,
    name_in_diffusers,
    bent_model,
    given_noise,
    monkeypatch,
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
    noises = draws(num_sampling_steps, torch.float64)
    expected = trajectory_of_diffusers(scheduler, bent_model, noises, num_sampling_steps, monkeypatch)
    noise = given_noise(noises)
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end), prediction)
    steps = list(sample_ancestral(bent_model, diffusion, noise, num_sampling_steps, clip_x_0=clip))
    assert len(steps) == len(expected) == num_sampling_steps
    for number, (step, (t, x_t, x_0_pred)) in enumerate(zip(steps, expected, strict=True), start=1):
        assert (step.number, step.t) == (number, t)
        # Without clipping, x_0 grows to hundreds.
        torch.testing.assert_close(step.x_0_pred, x_0_pred, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step.x_t, x_t, rtol=1e-9, atol=1e-9)
    assert noise.num_draws == num_sampling_steps


@pytest.mark.parametrize(("num_timesteps", "num_sampling_steps", "beta_end"), CASES)
def test_trajectory_equals_that_of_diffusers_in_float32(
    num_timesteps, num_sampling_steps, beta_end, bent_model, given_noise, monkeypatch
):
    scheduler = DDPMScheduler(
        num_timesteps,
        beta_end=beta_end,
        variance_type="fixed_small",
        clip_sample=True,
        timestep_spacing="trailing",
    )
    noises = draws(num_sampling_steps, torch.float32)
    expected = trajectory_of_diffusers(scheduler, bent_model, noises, num_sampling_steps, monkeypatch)
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end))
    steps = list(sample_ancestral(bent_model, diffusion, given_noise(noises), num_sampling_steps))
    for step, (_, x_t, x_0_pred) in zip(steps, expected, strict=True):
        torch.testing.assert_close(step.x_0_pred, x_0_pred, rtol=0, atol=1e-5)
        torch.testing.assert_close(step.x_t, x_t, rtol=0, atol=1e-5)


def test_the_compared_trajectories_meet_the_clipping(bent_model, given_noise):
    # Else the comparisons above would say nothing of it.
    diffusion = GaussianDiffusion(linear_betas(50, 1e-4, 0.2))
    steps = sample_ancestral(bent_model, diffusion, given_noise(draws(50, torch.float64)), 50)
    clipped = [float((step.x_0_pred.abs() == 1.0).double().mean()) for step in steps]
    assert min(clipped) < 0.1 and max(clipped) > 0.2


@pytest.mark.parametrize("num_sampling_steps", [1, 10, 100])
def test_a_perfect_model_of_one_image_draws_that_image(num_sampling_steps, given_noise):
    diffusion = GaussianDiffusion(linear_betas(100, 1e-4, 0.1))
    x_0 = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.0 - 1.0

    def model(x_t, t):
        return diffusion.predict_eps(x_t, t, x_0)

    noise = given_noise(draws(num_sampling_steps, torch.float64))
    for step in sample_ancestral(model, diffusion, noise, num_sampling_steps):
        torch.testing.assert_close(step.x_0_pred, x_0, rtol=0, atol=1e-9)
    torch.testing.assert_close(step.x_t, x_0, rtol=0, atol=1e-9)


def test_a_perfect_model_of_a_gaussian_draws_that_gaussian():
    """Where x_0 ~ N(0.2, 0.3^2), the best prediction of eps is known: a linear function of x_t."""
    diffusion = GaussianDiffusion(linear_betas(400, 1e-4, 0.05))
    mean, std = 0.2, 0.3

    def model(x_t, t):
        cumprod = diffusion.alphas_cumprod[t].to(x_t.dtype).reshape(-1, 1, 1, 1)
        variance = cumprod * std**2 + 1.0 - cumprod
        return (1.0 - cumprod).sqrt() / variance * (x_t - cumprod.sqrt() * mean)

    noise = ImageNoise(0, range(4), (3, 64, 64))
    *_, last = sample_ancestral(model, diffusion, noise, 400, clip_x_0=False)
    # 49,152 pixels: the mean is known to 0.0014, the deviation to 0.001. The posterior variance is right for data of
    # one image, and a lower bound for any other (Ho et al. 2020, section 3.2): with 400 steps it costs 3 %.
    assert float(last.x_t.mean()) == pytest.approx(mean, abs=0.007)
    assert 0.95 * std < float(last.x_t.std()) < 1.01 * std


def test_a_respace_diffusion_has_the_same_alphas_cumprod_where_it_steps():
    diffusion = GaussianDiffusion(cosine_betas(100), "v")
    timesteps = [99, 66, 32, 5]
    respaced = respace_diffusion(diffusion, timesteps)
    assert respaced.prediction == "v"
    torch.testing.assert_close(
        respaced.alphas_cumprod, diffusion.alphas_cumprod[[5, 32, 66, 99]], rtol=1e-12, atol=1e-15
    )
    # Nichol & Dhariwal 2021, section 4, for the second of the four.
    beta = 1.0 - float(diffusion.alphas_cumprod[32] / diffusion.alphas_cumprod[5])
    assert float(respaced.betas[1]) == pytest.approx(beta, rel=1e-12)


def test_all_time_steps_leave_the_diffusion_as_it_is():
    diffusion = GaussianDiffusion(linear_betas(10))
    assert respace_diffusion(diffusion, list(range(9, -1, -1))) is diffusion


@pytest.mark.parametrize("num_sampling_steps", [0, 51])
def test_a_wrong_number_of_steps_is_an_error(num_sampling_steps, bent_model):
    diffusion = GaussianDiffusion(linear_betas(50))
    with pytest.raises(ValueError, match="num_sampling_steps must lie in 1 … 50"):
        next(sample_ancestral(bent_model, diffusion, ImageNoise(0, [0], (3, 4, 4)), num_sampling_steps))
