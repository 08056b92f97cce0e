"""The distributions q and p, and the losses: equal to diffusers, and to formulas written out here."""

import functools
import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from ddpm.diffusion import GaussianDiffusion, pixel_losses
from ddpm.schedules import linear_betas
from tests.ddpm.small_networks import PREDICTIONS, bent_model, noise

T = 1000
images = functools.partial(noise, dtype=torch.float64)


@pytest.fixture
def diffusion():
    return GaussianDiffusion(linear_betas(T))


@pytest.fixture
def scheduler():
    """The scheduler of diffusers with tables in float64, so that comparisons need not allow for its float32."""
    scheduler = DDPMScheduler(T, clip_sample=True, variance_type="fixed_small")
    scheduler.alphas_cumprod = torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64), 0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def some_timesteps():
    return torch.tensor([0, 1, 2, 10, 500, 998, 999])


def cumprod_at(t):
    """alphas_cumprod of the published schedule, factor by factor."""
    return math.prod(1.0 - (1e-4 + s * (0.02 - 1e-4) / (T - 1)) for s in range(t + 1))


def test_noisy_images_and_velocities_equal_formula_and_diffusers(diffusion, scheduler):
    t = some_timesteps()
    x_0, eps = images(7, 3, 4, 4), images(7, 3, 4, 4, seed=1)
    x_t = diffusion.q_sample(x_0, t, eps)
    torch.testing.assert_close(x_t, scheduler.add_noise(x_0, eps, t), rtol=0, atol=1e-12)
    v = diffusion.v_target(x_0, t, eps)
    torch.testing.assert_close(v, scheduler.get_velocity(x_0, eps, t), rtol=0, atol=1e-12)
    for i, step in enumerate(t.tolist()):
        cumprod = cumprod_at(step)
        # Ho et al. 2020, Eq. 4.
        torch.testing.assert_close(x_t[i], cumprod**0.5 * x_0[i] + (1.0 - cumprod) ** 0.5 * eps[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("prediction", "name_in_diffusers"), PREDICTIONS)
def test_p_mean_variance_equals_the_step_of_diffusers(prediction, name_in_diffusers, clip, scheduler, monkeypatch):
    diffusion = GaussianDiffusion(linear_betas(T), prediction)
    scheduler.register_to_config(prediction_type=name_in_diffusers, clip_sample=clip)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **_: torch.zeros(shape, dtype=torch.float64))
    for t in some_timesteps().tolist():
        x_t = images(2, 3, 4, 4, seed=t)
        t_batch = torch.tensor([t, t])
        step = diffusion.p_mean_variance(bent_model(x_t, t_batch), x_t, t_batch, clip)
        expected = scheduler.step(bent_model(x_t, t_batch), t, x_t)
        # Without clipping, x_0 grows to hundreds.
        torch.testing.assert_close(step.mean, expected.prev_sample, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step.x_0_pred, expected.pred_original_sample, rtol=1e-9, atol=1e-9)
        # At the first time step diffusers takes 1e-20 for 0.
        variance = float(scheduler._get_variance(t)) if t else 0.0
        assert step.variance.flatten().tolist() == pytest.approx([variance] * 2, rel=1e-9, abs=0.0)


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_denoising_by_a_perfect_network_gives_image_and_noise(prediction):
    diffusion = GaussianDiffusion(linear_betas(T), prediction)
    t = some_timesteps()
    x_0, eps = images(7, 3, 4, 4).clamp(-1.0, 1.0), images(7, 3, 4, 4, seed=1)
    output = {"eps": eps, "v": diffusion.v_target(x_0, t, eps), "x_0": x_0}[prediction]
    torch.testing.assert_close(diffusion.target(x_0, t, eps), output, rtol=0, atol=0)
    for clip in (True, False):
        denoised = diffusion.denoise(output, diffusion.q_sample(x_0, t, eps), t, clip)
        torch.testing.assert_close(denoised.x_0_pred, x_0, rtol=0, atol=1e-9)
        torch.testing.assert_close(denoised.eps_pred, eps, rtol=0, atol=1e-9)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_denoised_parts_make_up_the_noisy_image_clipped_or_not(prediction, clip):
    diffusion = GaussianDiffusion(linear_betas(T), prediction)
    t, x_t = some_timesteps(), 2.0 * images(7, 3, 4, 4)
    denoised = diffusion.denoise(2.0 * bent_model(x_t, t), x_t, t, clip)
    assert (float(denoised.x_0_pred.abs().max()) > 1.0) is not clip  # there was something to clip
    # Eq. 4: eps follows an x_0 that was clipped.
    torch.testing.assert_close(diffusion.q_sample(denoised.x_0_pred, t, denoised.eps_pred), x_t, rtol=0, atol=1e-9)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_one_time_step_for_all_images_gives_what_it_gives_for_each(prediction, clip):
    diffusion = GaussianDiffusion(linear_betas(T), prediction)
    output, x_t = (images(2, 3, 4, 4, seed=seed, dtype=torch.float32) for seed in (0, 1))
    for t in some_timesteps().tolist():
        for step in (diffusion.denoise, diffusion.p_mean_variance):
            of_all, of_each = (vars(step(output, x_t, each, clip)) for each in (t, torch.tensor([t, t])))
            variance = of_all.pop("variance", None)
            if variance is not None:
                assert of_each.pop("variance").flatten().tolist() == torch.tensor([variance] * 2).tolist()
            torch.testing.assert_close(of_all, of_each, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("loss", "of_error"),
    [
        ("mse", lambda error: error * error),
        ("l1", abs),
        ("huber", lambda error: 0.5 * error * error if abs(error) < 1.0 else abs(error) - 0.5),
    ],
)
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_losses_are_means_over_the_pixels_of_each_image(loss, of_error, prediction):
    diffusion = GaussianDiffusion(linear_betas(T), prediction)
    x_0, eps = images(3, 2, 4, 4, dtype=torch.float32), images(3, 2, 4, 4, seed=1, dtype=torch.float32)
    t = torch.tensor([0, 500, 999])
    seen = []

    def model(x_t, t):
        seen.append((x_t, t))
        return 3.0 * x_t

    losses = diffusion.losses(model, x_0, t, eps, loss)
    ((x_t, t_seen),) = seen
    torch.testing.assert_close(x_t, diffusion.q_sample(x_0, t, eps), rtol=0, atol=0)
    torch.testing.assert_close(t_seen, t, rtol=0, atol=0)
    target = {"eps": eps, "v": diffusion.v_target(x_0, t, eps), "x_0": x_0}[prediction]
    assert losses.shape == (3,)
    for errors, found in zip((target - 3.0 * x_t).flatten(1).tolist(), losses.tolist(), strict=True):
        assert min(map(abs, errors)) < 1.0 < max(map(abs, errors))  # both pieces of huber are met
        assert found == pytest.approx(sum(map(of_error, errors)) / len(errors), rel=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_min_snr_weights_equal_the_formula(prediction, gamma):
    weights = GaussianDiffusion(linear_betas(T), prediction).min_snr_weights(some_timesteps(), gamma)
    assert weights.shape == (7,) and weights.dtype == torch.float32
    snrs = []
    for t, weight in zip(some_timesteps().tolist(), weights.tolist(), strict=True):
        snr = cumprod_at(t) / (1.0 - cumprod_at(t))
        # Hang et al. 2023, section 3.4.
        divisor = {"x_0": 1.0, "eps": snr, "v": snr + 1.0}[prediction]
        assert weight == pytest.approx(min(snr, gamma) / divisor, rel=1e-6)
        snrs.append(snr)
    assert min(snrs) < gamma < max(snrs)  # both pieces are met


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_half_precision_predictions_are_used_in_float32(prediction, clip):
    diffusion = GaussianDiffusion(linear_betas(T), prediction)
    t, x_t = some_timesteps(), images(7, 3, 4, 4, dtype=torch.float32)
    rounded = bent_model(x_t, t).bfloat16()
    steps = (lambda *args: diffusion.denoise(*args, clip), lambda *args: diffusion.p_mean_variance(*args, clip))
    for step in steps:
        half, full = (vars(step(output, x_t, t)) for output in (rounded, rounded.float()))
        for name, part in half.items():
            assert part.dtype == torch.float32, name
            torch.testing.assert_close(part, full[name], rtol=0, atol=0)
    losses = [diffusion.losses(lambda *_, o=o: o, x_t, t, x_t.flip(0)) for o in (rounded, rounded.float())]
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


@pytest.mark.usefixtures("without_shape_checks")
def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown loss 'l2'; choose one of mse, l1, huber"):
        pixel_losses(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), "l2")
    with pytest.raises(ValueError, match="unknown prediction 'score'; choose one of eps, v, x_0"):
        GaussianDiffusion(linear_betas(10), "score")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tables_are_float64_and_results_have_the_dtype_of_the_images(dtype):
    diffusion = GaussianDiffusion(linear_betas(T).float())
    assert diffusion.num_timesteps == T
    for table in ("betas", "alphas", "alphas_cumprod", "alphas_cumprod_prev", "posterior_variance"):
        assert getattr(diffusion, table).dtype == torch.float64, table
    x, t = images(2, 3, 4, 4, dtype=dtype), torch.tensor([0, 999])
    assert diffusion.q_sample(x, t, x).dtype == dtype
    assert diffusion.q_posterior(x, x, t)[0].dtype == dtype
    assert diffusion.predict_x_0(x, t, x).dtype == dtype


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("betas", "message"),
    [
        *(
            (torch.tensor(betas), r"betas must be a vector of numbers in \(0, 1\)")
            for betas in ([], [0.0, 0.1], [0.1, 1.0], [-0.1], [float("nan")], [[0.1, 0.1]])
        ),
        (linear_betas(10_000, 1e-4, 0.5), r"alphas_cumprod in \(0, 1\), got 0 from t = \d{4} on: take fewer or lower"),
        (torch.full((30,), 1.0 - 1e-12, dtype=torch.float64), "got 0 from t = 26 on"),
        (torch.tensor([1e-17, 0.1], dtype=torch.float64), "got 1 at t = 0"),
    ],
)
def test_betas_that_cannot_be_used_are_an_error(betas, message):
    with pytest.raises(ValueError, match=message):
        GaussianDiffusion(betas)
