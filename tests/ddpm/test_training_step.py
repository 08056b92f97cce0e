"""Half-precision twins of the weights, which a GPU trains with, against autocast."""

import pytest
import torch

from ddpm.training_step import HalfWeights


@pytest.fixture
def model(start):
    """A network whose layers have all moved off the zeros that some start with."""
    model = start().model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def loss_of(network, part):
    x_t, t = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 10, 19])
    with torch.autocast("cpu", torch.bfloat16):
        return network(x_t[part], t[part]).square().mean()


@pytest.mark.parametrize("parts", [[slice(0, 4)], [slice(0, 2), slice(2, 4)]])
def test_gradients_of_half_weights_are_those_of_autocast_summed_in_float32(model, parts):
    for part in parts:
        loss_of(model, part).backward()
    expected = gradients(model)
    model.zero_grad()
    half = HalfWeights(model)
    for part in parts:
        loss_of(half.network, part).backward()
        half.hand_over_gradients()
    weights = dict(model.named_parameters())
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32 and gradient.stride() == weights[name].stride()
        # Gradients that meet are added in bfloat16, in another order: both are up to 7% away from those of float32.
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(
            gradient, expected[name], rtol=0, atol=0.1 * largest + 1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_half_weights_follow_the_weights_and_share_the_norms(model):
    half = HalfWeights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    half.refresh()
    dtypes = set()
    for (name, weight), (_, twin) in zip(model.named_parameters(), half.network.named_parameters(), strict=True):
        dtypes.add(twin.dtype)
        if "norm" in name:
            assert twin is weight
        else:
            assert twin.dtype == torch.bfloat16
            torch.testing.assert_close(twin, weight.to(torch.bfloat16), rtol=0, atol=0)
    assert dtypes == {torch.float32, torch.bfloat16}
