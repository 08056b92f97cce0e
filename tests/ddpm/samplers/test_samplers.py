"""Guarantees of every sampler."""

import itertools
from typing import get_args

import pytest
import torch

from ddpm import GaussianDiffusion, ImageNoise, cosine_betas, linear_betas, sample, sampler_steps
from ddpm.config import SamplerName
from ddpm.samplers import ancestral, ddim, dpm_solver
from tests.ddpm.small_networks import SAMPLERS, GivenNoise, Operations, bent_model, noise

SHAPE = (3, 4, 4)


@pytest.mark.parametrize(("name", "eta"), SAMPLERS)
@pytest.mark.parametrize("num_sampling_steps", [1, 7, 20])
def test_network_calls_and_noise_are_those_of_the_data_sheet(name, eta, num_sampling_steps, diffusion):
    calls, drawn = [], GivenNoise(noise(num_sampling_steps, 2, *SHAPE))

    def model(x_t, t):
        calls.append(t.tolist())
        return bent_model(x_t, t)

    steps = list(sampler_steps(name, model, diffusion, drawn, num_sampling_steps, eta))
    assert calls == [[step.t, step.t] for step in steps]
    assert [step.number for step in steps] == list(range(1, num_sampling_steps + 1))
    assert steps[0].t == 19
    assert drawn.num_draws == (num_sampling_steps if eta or name == "ddpm" else 1)


@pytest.mark.parametrize(("name", "eta"), SAMPLERS)
def test_images_do_not_depend_on_the_batch_size(name, eta, diffusion, awake_unet):
    # Products of another size are added up in another order.
    for model, size, tolerance in ((bent_model, 4, 1e-6), (awake_unet, 8, 1e-3)):
        together = sample(name, model, diffusion, ImageNoise(3, range(4), (3, size, size)), 5, eta)
        assert together.shape == (4, 3, size, size)
        alone = [sample(name, model, diffusion, ImageNoise(3, [i], (3, size, size)), 5, eta) for i in range(4)]
        torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=tolerance)
        assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("betas", [linear_betas(100, 1e-4, 0.1), cosine_betas(100)], ids=["linear", "cosine"])
@pytest.mark.parametrize(("name", "eta"), SAMPLERS)
@pytest.mark.parametrize("num_sampling_steps", [1, 7, 100])
def test_a_perfect_model_of_one_image_draws_that_image(num_sampling_steps, name, eta, betas):
    diffusion = GaussianDiffusion(betas)
    x_0 = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.0 - 1.0
    drawn = GivenNoise(noise(100, 2, *SHAPE, dtype=torch.float64))

    def model(x_t, t):
        return diffusion.predict_eps(x_t, t, x_0)

    for step in sampler_steps(name, model, diffusion, drawn, num_sampling_steps, eta):
        torch.testing.assert_close(step.x_0_pred, x_0, rtol=0, atol=1e-9)
    torch.testing.assert_close(step.x_t, x_0, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "options", "num_timesteps", "lowest", "highest"),
    [
        # The posterior variance is right for data of one image, and a lower bound for any other (Ho et al. 2020,
        # section 3.2): with 400 steps it costs 3 %.
        (ancestral.sample_ancestral, {}, 400, 0.95, 1.01),
        (ddim.sample_ddim, {"eta": 0.0}, 200, 0.97, 1.03),
        (ddim.sample_ddim, {"eta": 0.5}, 200, 0.97, 1.03),
    ],
)
def test_a_perfect_model_of_a_gaussian_draws_that_gaussian(sampler, options, num_timesteps, lowest, highest):
    """Where x_0 ~ N(0.2, 0.3^2), the best prediction of eps is known: a linear function of x_t."""
    diffusion = GaussianDiffusion(linear_betas(num_timesteps, 1e-4, 20 / num_timesteps))
    mean, std = 0.2, 0.3

    def model(x_t, t):
        cumprod = diffusion.alphas_cumprod[t].to(x_t.dtype).reshape(-1, 1, 1, 1)
        variance = cumprod * std**2 + 1.0 - cumprod
        return (1.0 - cumprod).sqrt() / variance * (x_t - cumprod.sqrt() * mean)

    drawn = ImageNoise(0, range(4), (3, 64, 64))
    *_, last = sampler(model, diffusion, drawn, num_timesteps, **options, clip_x_0=False)
    # 49,152 pixels: the mean is known to 0.0014, the deviation to 0.001.
    assert float(last.x_t.mean()) == pytest.approx(mean, abs=0.007)
    assert lowest * std < float(last.x_t.std()) < highest * std


@pytest.mark.parametrize(("name", "eta"), SAMPLERS)
def test_sample_is_the_last_step_clipped(name, eta, diffusion):
    def model(x_t, t):
        return -x_t  # drives x_0_pred, clipped or not, to its limits

    *_, last = sampler_steps(name, model, diffusion, ImageNoise(0, [0], SHAPE), 10, eta)
    images = sample(name, model, diffusion, ImageNoise(0, [0], SHAPE), 10, eta)
    torch.testing.assert_close(images, last.x_t.clamp(-1.0, 1.0), rtol=0, atol=0)
    assert images.abs().max() <= 1.0


def test_the_name_chooses_the_sampler_and_eta_is_passed_on(diffusion):
    noises = [torch.full((1, *SHAPE), 0.1 * i) for i in range(10)]
    direct = {
        ("ddpm", 0.0): ancestral.sample_ancestral(bent_model, diffusion, GivenNoise(noises), 10),
        ("ddim", 0.0): ddim.sample_ddim(bent_model, diffusion, GivenNoise(noises), 10),
        ("ddim", 0.5): ddim.sample_ddim(bent_model, diffusion, GivenNoise(noises), 10, 0.5),
        ("dpm_solver++", 0.0): dpm_solver.sample_dpm_solver(bent_model, diffusion, GivenNoise(noises), 10),
        ("dpm_solver++", 0.5): dpm_solver.sample_dpm_solver(bent_model, diffusion, GivenNoise(noises), 10, 0.5),
    }
    results = []
    for (name, eta), steps in direct.items():
        named = sampler_steps(name, bent_model, diffusion, GivenNoise(noises), 10, eta)
        for one, other in zip(named, steps, strict=True):
            torch.testing.assert_close(one.x_t, other.x_t, rtol=0, atol=0)
        results.append(one.x_t)
    for one, other in itertools.combinations(results, 2):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize(
    "betas", [linear_betas(10_000, 1e-4, 0.1), linear_betas(26, 1e-16, 1.0 - 1e-12), cosine_betas(10_000)]
)
@pytest.mark.parametrize("name", get_args(SamplerName))
def test_schedules_at_the_ends_of_what_is_allowed_can_be_sampled_with(betas, name):
    # With the first, nearly all of an image is lost from one of twenty steps to the next.
    drawn = sample(name, bent_model, GaussianDiffusion(betas), ImageNoise(0, [0], SHAPE), 20)
    assert drawn.isfinite().all()


@pytest.mark.parametrize(("name", "eta"), SAMPLERS)
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_a_step_computes_whole_images_alone(name, eta, prediction):
    # On a GPU each number gathered from a table would be a kernel of its own.
    drawn = GivenNoise([torch.full((2, *SHAPE), 0.1 * i) for i in range(10)])
    diffusion = GaussianDiffusion(linear_betas(20, 1e-4, 0.3), prediction)
    steps = sampler_steps(name, lambda x_t, _: x_t, diffusion, drawn, 10, eta)
    next(steps)
    with Operations() as operations:
        assert len(list(steps)) == 9
    # Apart from t for the network, and from what a CPU does for a GPU: the root of one number.
    done = zip(operations.names, operations.shapes, strict=True)
    assert {name for name, shape in done if shape not in ((2, *SHAPE), ())} == {"full"}
    assert len(operations.names) <= 9 * 15


@pytest.mark.parametrize(("name", "eta"), SAMPLERS)
@pytest.mark.parametrize("enabled", [True, False])
def test_steps_carry_no_gradients_and_keep_the_callers_mode(name, eta, enabled, diffusion, awake_unet):
    awake_unet.requires_grad_(True)
    with torch.set_grad_enabled(enabled):
        for step in sampler_steps(name, awake_unet, diffusion, ImageNoise(0, [0], (3, 8, 8)), 3, eta):
            assert torch.is_grad_enabled() is enabled
            assert not step.x_t.requires_grad and not step.x_0_pred.requires_grad
        assert torch.is_grad_enabled() is enabled


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("name", "num_sampling_steps", "eta", "message"),
    [
        ("no_such", 10, 0.0, "unknown sampler 'no_such'; choose one of ddpm, ddim"),
        *((name, steps, 0.0, "must lie in 1 … 20, got") for name in get_args(SamplerName) for steps in (0, 21)),
        *((name, 10, eta, "eta must lie in") for name in ("ddim", "dpm_solver++") for eta in (-0.1, 1.1, float("nan"))),
    ],
)
def test_arguments_out_of_range_are_an_error(name, num_sampling_steps, eta, message, diffusion):
    with pytest.raises(ValueError, match=message):
        sample(name, bent_model, diffusion, ImageNoise(0, [0], SHAPE), num_sampling_steps, eta)
