"""The noise schedules: equal to those of diffusers, and to the papers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from ddpm.schedules import cosine_betas, linear_betas, make_betas


@pytest.mark.parametrize("num_timesteps", [1, 2, 50, 1000])
@pytest.mark.parametrize(
    ("name", "name_in_diffusers", "beta_start"), [("linear", "linear", 1e-3), ("cosine", "squaredcos_cap_v2", 1e-4)]
)
def test_betas_equal_those_of_diffusers(name, name_in_diffusers, beta_start, num_timesteps):
    scheduler = DDPMScheduler(num_timesteps, beta_start=beta_start, beta_schedule=name_in_diffusers)
    betas = make_betas(name, num_timesteps, beta_start)
    # diffusers keeps float32: 6e-8 relative, which multiplies up to 1e-4 over a thousand factors.
    torch.testing.assert_close(betas.float(), scheduler.betas, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.cumprod(1.0 - betas, 0).float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-9)


def test_cosine_betas_follow_the_squared_cosine_up_to_their_limit():
    # Nichol & Dhariwal 2021, Eq. 17.
    f = [math.cos((t / 10 + 0.1) / 1.1 * math.pi / 2) ** 2 for t in range(11)]
    expected = [min(0.3, 1.0 - f[t + 1] / f[t]) for t in range(10)]
    assert 0.3 in expected and expected[0] < 0.3
    assert cosine_betas(10, offset=0.1, max_beta=0.3).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("betas", [linear_betas(1000), cosine_betas(1000)], ids=["linear", "cosine"])
def test_betas_are_float64_and_rise_within_their_range(betas):
    assert betas.dtype == torch.float64
    assert betas.min() > 0.0 and betas.max() < 1.0
    assert bool((betas.diff() > 0).all())


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (linear_betas, (0,), "num_timesteps must be at least 1"),
        (cosine_betas, (-1,), "num_timesteps must be at least 1"),
        *(
            (linear_betas, (10, *limits), "0 < beta_start <= beta_end < 1")
            for limits in ((0.0, 0.02), (0.02, 1e-4), (0.1, 1.0), (-0.1, 0.1), (math.nan, 0.1))
        ),
        (cosine_betas, (10, -0.1, 0.9), "offset >= 0"),
        (cosine_betas, (10, 0.1, 0.0), "0 < max_beta < 1"),
        (cosine_betas, (10, 0.1, 1.0), "0 < max_beta < 1"),
        (make_betas, ("sigmoid", 10), "unknown schedule 'sigmoid'; choose one of linear, cosine"),
    ],
)
def test_arguments_outside_their_range_are_an_error(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)
