"""Classifier-free guidance: against its formula, for every prediction and sampler, and what it costs."""

import dataclasses

import pytest
import torch

from ddpm import GaussianDiffusion, ImageNoise, UNet, guided, linear_betas, sample
from ddpm.classes import NO_CLASS
from tests.ddpm.small_networks import SAMPLERS, TINY, awake, noise

LABELS = torch.tensor([2, 0, 1])


@pytest.fixture
def network():
    """A tiny network that knows three classes, all of whose layers shape its output."""
    torch.manual_seed(0)
    return awake(UNet(dataclasses.replace(TINY, num_classes=3))).requires_grad_(False)


@pytest.mark.parametrize("guidance_scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_equals_the_formula(network, guidance_scale):
    x_t, t = noise(3, 3, 8, 8), torch.tensor([3, 700, 20])
    conditional, unconditional = network(x_t, t, LABELS), network(x_t, t)
    assert (conditional - unconditional).abs().max() > 1e-2
    sizes = []
    network.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    # Ho & Salimans 2022, Eq. 6, with w = scale - 1.
    expected = guidance_scale * conditional - (guidance_scale - 1.0) * unconditional
    is_guided = guidance_scale not in (0.0, 1.0)
    predicted = guided(network, LABELS, guidance_scale)(x_t, t)
    torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-4 if is_guided else 0)
    assert sizes == [6 if is_guided else 3]  # only guidance doubles the batch


@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
@pytest.mark.parametrize(("name", "eta"), SAMPLERS)
def test_every_sampler_draws_guided_images(network, name, eta, prediction):
    diffusion = GaussianDiffusion(linear_betas(20, 1e-4, 0.3), prediction)

    def drawn(numbers, guidance_scale):
        model = guided(network, LABELS[torch.tensor(numbers)], guidance_scale)
        return sample(name, model, diffusion, ImageNoise(3, numbers, (3, 8, 8)), 5, eta)

    together = drawn([0, 1, 2], 2.0)
    for number in range(3):
        # Other sizes of a product are added up in another order.
        torch.testing.assert_close(drawn([number], 2.0)[0], together[number], rtol=0, atol=5e-3)
    assert (together - drawn([0, 1, 2], 1.0)).abs().max() > 1e-2


def test_in_bfloat16_the_difference_is_not_rounded_again():
    def network(x_t, t, labels):
        # Two numbers that bfloat16 holds; three times their difference, added, it does not.
        is_known = (labels != NO_CLASS).reshape(-1, 1, 1, 1)
        return torch.where(is_known, 1.0078125, 1.0).to(torch.bfloat16).expand(x_t.shape)

    out = guided(network, LABELS, 3.5)(noise(3, 3, 8, 8), torch.zeros(3).long())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.full((3, 3, 8, 8), 1.0 + 3.5 * 0.0078125), rtol=0, atol=1e-7)


@pytest.mark.parametrize("guidance_scale", [-0.5, float("nan")])
def test_a_negative_scale_is_an_error(network, guidance_scale):
    with pytest.raises(ValueError, match="guidance_scale must be at least 0, got"):
        guided(network, LABELS, guidance_scale)
