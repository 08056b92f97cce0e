"""The DDIM sampler: its whole trajectory equal to that of diffusers, and at eta = 1 to the ancestral sampler."""

import pytest
import torch
from diffusers import DDIMScheduler

from ddpm import GaussianDiffusion, ImageNoise, cosine_betas, linear_betas
from ddpm.samplers.ancestral import sample_ancestral
from ddpm.samplers.ddim import sample_ddim

SHAPE = (2, 3, 4, 4)


def draws(count, dtype):
    return torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def trajectory_of_diffusers(scheduler, model, noises, num_sampling_steps, eta):
    """x_t and x_0_pred of each step, from the noises x_T and those of the steps."""
    scheduler.set_timesteps(num_sampling_steps)
    x_t, steps = noises[0], []
    # The last step's variance is zero: any noise will do.
    for t, noise in zip(scheduler.timesteps.tolist(), [*noises[1:], noises[0]], strict=True):
        step = scheduler.step(
            model(x_t, torch.full((len(x_t),), t)),
            t,
            x_t,
            eta=eta,
            # clip_sample alone clips x_0 and keeps the eps of the unclipped one: here eps follows.
            use_clipped_model_output=scheduler.config.clip_sample,
            variance_noise=noise,
        )
        x_t = step.prev_sample
        steps.append((t, x_t, step.pred_original_sample))
    return steps


CASES = [
    # T, steps (diffusers places the previous step right where they divide T), last variance
    (50, 50, 0.2),
    (50, 10, 0.2),
    (50, 1, 0.2),
    (1000, 25, 0.02),
]


def scheduler_of_diffusers(num_timesteps, beta_end, clip):
    return DDIMScheduler(
        num_timesteps,
        beta_end=beta_end,
        clip_sample=clip,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


@pytest.mark.parametrize(("num_timesteps", "num_sampling_steps", "beta_end"), CASES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("prediction", "name_in_diffusers"), [("eps", "epsilon"), ("v", "v_prediction"), ("x_0", "sample")]
)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_trajectory_equals_that_of_diffusers_in_float64(
    num_timesteps, num_sampling_steps, beta_end, clip, eta, prediction, name_in_diffusers, bent_model, given_noise
):
    scheduler = scheduler_of_diffusers(num_timesteps, beta_end, clip)
    scheduler.register_to_config(prediction_type=name_in_diffusers)
    # Its tables in float64: what remains is the order of operations.
    betas = torch.linspace(1e-4, beta_end, num_timesteps, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1.0 - betas, 0)
    noises = draws(num_sampling_steps, torch.float64)
    expected = trajectory_of_diffusers(scheduler, bent_model, noises, num_sampling_steps, eta)
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end), prediction)
    steps = list(sample_ddim(bent_model, diffusion, given_noise(noises), num_sampling_steps, eta, clip_x_0=clip))
    assert len(steps) == len(expected) == num_sampling_steps
    for number, (step, (t, x_t, x_0_pred)) in enumerate(zip(steps, expected, strict=True), start=1):
        assert (step.number, step.t) == (number, t)
        # Without clipping, x_0 grows to hundreds.
        torch.testing.assert_close(step.x_0_pred, x_0_pred, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step.x_t, x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("num_timesteps", "num_sampling_steps", "beta_end"), CASES)
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_trajectory_equals_that_of_diffusers_in_float32(
    num_timesteps, num_sampling_steps, beta_end, eta, bent_model, given_noise
):
    scheduler = scheduler_of_diffusers(num_timesteps, beta_end, clip=True)
    noises = draws(num_sampling_steps, torch.float32)
    expected = trajectory_of_diffusers(scheduler, bent_model, noises, num_sampling_steps, eta)
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, beta_end))
    steps = list(sample_ddim(bent_model, diffusion, given_noise(noises), num_sampling_steps, eta))
    for step, (_, x_t, x_0_pred) in zip(steps, expected, strict=True):
        torch.testing.assert_close(step.x_0_pred, x_0_pred, rtol=0, atol=1e-5)
        torch.testing.assert_close(step.x_t, x_t, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("num_timesteps", "num_sampling_steps"), [(50, 50), (50, 10), (50, 7), (1000, 25)])
def test_at_eta_1_it_is_the_ancestral_sampler(num_timesteps, num_sampling_steps, bent_model, given_noise):
    # Song, Meng & Ermon 2021, section 4.1. Their code shares nothing but the time steps.
    diffusion = GaussianDiffusion(cosine_betas(num_timesteps))
    noises = draws(num_sampling_steps, torch.float64)
    ddim = sample_ddim(bent_model, diffusion, given_noise(noises), num_sampling_steps, eta=1.0)
    ancestral = sample_ancestral(bent_model, diffusion, given_noise(noises), num_sampling_steps)
    for one, other in zip(ddim, ancestral, strict=True):
        torch.testing.assert_close(one.x_0_pred, other.x_0_pred, rtol=0, atol=1e-8)
        torch.testing.assert_close(one.x_t, other.x_t, rtol=0, atol=1e-8)


def test_at_eta_0_no_noise_is_drawn_after_x_t(bent_model, given_noise):
    noise = given_noise(draws(1, torch.float64))
    assert len(list(sample_ddim(bent_model, GaussianDiffusion(linear_betas(50)), noise, 10))) == 10
    assert noise.num_draws == 1


def test_above_eta_0_noise_is_drawn_in_each_step_but_the_last(bent_model, given_noise):
    noise = given_noise(draws(10, torch.float64))
    assert len(list(sample_ddim(bent_model, GaussianDiffusion(linear_betas(50)), noise, 10, eta=0.1))) == 10
    assert noise.num_draws == 10


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("num_sampling_steps", [1, 7, 100])
def test_a_perfect_model_of_one_image_draws_that_image(num_sampling_steps, eta, given_noise):
    diffusion = GaussianDiffusion(linear_betas(100, 1e-4, 0.1))
    x_0 = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.0 - 1.0

    def model(x_t, t):
        return diffusion.predict_eps(x_t, t, x_0)

    for step in sample_ddim(model, diffusion, given_noise(draws(100, torch.float64)), num_sampling_steps, eta):
        torch.testing.assert_close(step.x_0_pred, x_0, rtol=0, atol=1e-9)
    torch.testing.assert_close(step.x_t, x_0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_perfect_model_of_a_gaussian_draws_that_gaussian(eta):
    """Where x_0 ~ N(0.2, 0.3^2), the best prediction of eps is known: a linear function of x_t."""
    diffusion = GaussianDiffusion(linear_betas(200, 1e-4, 0.1))
    mean, std = 0.2, 0.3

    def model(x_t, t):
        cumprod = diffusion.alphas_cumprod[t].to(x_t.dtype).reshape(-1, 1, 1, 1)
        variance = cumprod * std**2 + 1.0 - cumprod
        return (1.0 - cumprod).sqrt() / variance * (x_t - cumprod.sqrt() * mean)

    noise = ImageNoise(0, range(4), (3, 64, 64))
    *_, last = sample_ddim(model, diffusion, noise, 200, eta, clip_x_0=False)
    # 49,152 pixels: the mean is known to 0.0014, the deviation to 0.001; 200 steps leave up to 2 % of it.
    assert float(last.x_t.mean()) == pytest.approx(mean, abs=0.007)
    assert float(last.x_t.std()) == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("num_sampling_steps", [0, 51])
def test_a_wrong_number_of_steps_is_an_error(num_sampling_steps, bent_model):
    diffusion = GaussianDiffusion(linear_betas(50))
    with pytest.raises(ValueError, match="num_sampling_steps must lie in 1 … 50"):
        next(sample_ddim(bent_model, diffusion, ImageNoise(0, [0], (3, 4, 4)), num_sampling_steps))


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_an_eta_outside_its_range_is_an_error(eta, bent_model):
    diffusion = GaussianDiffusion(linear_betas(50))
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
        next(sample_ddim(bent_model, diffusion, ImageNoise(0, [0], (3, 4, 4)), 10, eta))
