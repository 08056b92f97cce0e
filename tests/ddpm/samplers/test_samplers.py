"""What all samplers share."""

import itertools
from typing import get_args

import pytest
import torch

from ddpm import GaussianDiffusion, ImageNoise, cosine_betas, linear_betas, sample, sampler_steps
from ddpm.config import SamplerName
from ddpm.samplers import ancestral, ddim, dpm_solver

SHAPE = (3, 4, 4)
ALL = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("dpm_solver++", 0.0)]


@pytest.fixture
def diffusion():
    return GaussianDiffusion(linear_betas(20, 1e-4, 0.3))


@pytest.mark.parametrize("module", [ancestral, ddim, dpm_solver])
def test_each_sampler_has_a_data_sheet(module):
    rows = [line.split()[0] for line in module.__doc__.partition("Data sheet\n")[2].splitlines() if line]
    assert rows == ["source", "cost", "noise", "steps", "prefer"]


@pytest.mark.parametrize(("name", "eta"), ALL)
@pytest.mark.parametrize("num_sampling_steps", [1, 7, 20])
def test_a_step_costs_one_network_call_as_its_data_sheet_says(name, eta, num_sampling_steps, diffusion, bent_model):
    calls = []

    def model(x_t, t):
        calls.append(t.tolist())
        return bent_model(x_t, t)

    steps = list(sampler_steps(name, model, diffusion, ImageNoise(0, [0, 1], SHAPE), num_sampling_steps, eta))
    assert calls == [[step.t, step.t] for step in steps]
    assert [step.number for step in steps] == list(range(1, num_sampling_steps + 1))
    assert steps[0].t == 19


@pytest.mark.parametrize(("name", "eta"), ALL)
def test_images_do_not_depend_on_the_batch_size(name, eta, diffusion, bent_model):
    together = sample(name, bent_model, diffusion, ImageNoise(3, range(5), SHAPE), 10, eta)
    assert together.shape == (5, *SHAPE)
    alone = [sample(name, bent_model, diffusion, ImageNoise(3, [i], SHAPE), 10, eta) for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize(("name", "eta"), ALL)
def test_a_networks_images_do_not_depend_on_the_batch_size(name, eta, diffusion, awake_unet):
    together = sample(name, awake_unet, diffusion, ImageNoise(3, range(3), (3, 8, 8)), 5, eta)
    alone = [sample(name, awake_unet, diffusion, ImageNoise(3, [i], (3, 8, 8)), 5, eta) for i in range(3)]
    # Other sizes of a product are added up in another order.
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "eta"), ALL)
def test_sample_is_the_last_step_clipped(name, eta, diffusion):
    def model(x_t, t):
        return -x_t  # drives x_0_pred, clipped or not, to its limits

    *_, last = sampler_steps(name, model, diffusion, ImageNoise(0, [0], SHAPE), 10, eta)
    images = sample(name, model, diffusion, ImageNoise(0, [0], SHAPE), 10, eta)
    torch.testing.assert_close(images, last.x_t.clamp(-1.0, 1.0), rtol=0, atol=0)
    assert images.abs().max() <= 1.0


def test_the_name_chooses_the_sampler_and_eta_is_passed_on(diffusion, bent_model, given_noise):
    noises = [torch.full((1, *SHAPE), 0.1 * i) for i in range(10)]
    direct = {
        ("ddpm", 0.0): ancestral.sample_ancestral(bent_model, diffusion, given_noise(noises), 10),
        ("ddim", 0.0): ddim.sample_ddim(bent_model, diffusion, given_noise(noises), 10),
        ("ddim", 0.5): ddim.sample_ddim(bent_model, diffusion, given_noise(noises), 10, 0.5),
        ("dpm_solver++", 0.0): dpm_solver.sample_dpm_solver(bent_model, diffusion, given_noise(noises), 10),
    }
    results = []
    for (name, eta), steps in direct.items():
        named = sampler_steps(name, bent_model, diffusion, given_noise(noises), 10, eta)
        for one, other in zip(named, steps, strict=True):
            torch.testing.assert_close(one.x_t, other.x_t, rtol=0, atol=0)
        results.append(one.x_t)
    for one, other in itertools.combinations(results, 2):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize(
    "betas", [linear_betas(10_000, 1e-4, 0.1), linear_betas(26, 1e-16, 1.0 - 1e-12), cosine_betas(10_000)]
)
@pytest.mark.parametrize("name", get_args(SamplerName))
def test_schedules_at_the_ends_of_what_is_allowed_can_be_sampled_with(betas, name, bent_model):
    # Of the first nearly all of an image is lost from one of twenty steps to the next.
    drawn = sample(name, bent_model, GaussianDiffusion(betas), ImageNoise(0, [0], SHAPE), 20)
    assert drawn.isfinite().all()


def test_sampling_computes_no_gradients(diffusion, awake_unet):
    awake_unet.requires_grad_(True)
    assert not sample("ddim", awake_unet, diffusion, ImageNoise(0, [0], (3, 8, 8)), 2).requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("name", "eta"), [*ALL, ("dpm_solver++", 0.5)])
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_a_step_computes_whole_images_alone(name, eta, prediction, given_noise, operations):
    # On a GPU each number gathered from a table would be a kernel of its own.
    noise = given_noise([torch.full((2, *SHAPE), 0.1 * i) for i in range(10)])
    diffusion = GaussianDiffusion(linear_betas(20, 1e-4, 0.3), prediction)
    steps = sampler_steps(name, lambda x_t, _: x_t, diffusion, noise, 10, eta)
    next(steps)
    with operations:
        assert len(list(steps)) == 9
    # Apart from t for the network, and from what a CPU does for a GPU: the root of one number.
    done = zip(operations.names, operations.shapes, strict=True)
    assert {name for name, shape in done if shape not in ((2, *SHAPE), ())} == {"full"}
    assert len(operations.names) <= 9 * 15


@pytest.mark.parametrize(("name", "eta"), ALL)
@pytest.mark.parametrize("enabled", [True, False])
def test_steps_carry_no_gradients_and_leave_the_callers_mode_as_it_is(name, eta, enabled, diffusion, awake_unet):
    awake_unet.requires_grad_(True)
    with torch.set_grad_enabled(enabled):
        for step in sampler_steps(name, awake_unet, diffusion, ImageNoise(0, [0], (3, 8, 8)), 3, eta):
            assert torch.is_grad_enabled() is enabled
            assert not step.x_t.requires_grad and not step.x_0_pred.requires_grad
        assert torch.is_grad_enabled() is enabled


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("entry", [sample, sampler_steps])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(entry, diffusion, bent_model):
    with pytest.raises(ValueError, match=r"unknown sampler 'euler'; choose one of ddpm, ddim, dpm_solver\+\+"):
        entry("euler", bent_model, diffusion, ImageNoise(0, [0], SHAPE), 10)
