"""The moving average: by hand algebra."""

import pytest
import torch
from torch import nn

from ddpm.ema import ExponentialMovingAverage


@pytest.fixture
def model():
    return nn.Linear(1, 1)


def set_weights(model, weight, bias):
    with torch.no_grad():
        model.weight.fill_(weight)
        model.bias.fill_(bias)


def weights_of(model):
    return float(model.weight.detach()), float(model.bias.detach())


def test_the_warm_up_raises_the_decay_to_its_value(model):
    set_weights(model, 0.0, 0.0)
    ema = ExponentialMovingAverage(model, decay=0.3, warmup=True)
    set_weights(model, 1.0, 2.0)
    average = 0.0
    # (1 + n) / (10 + n) for n = 0, 1, 2, and so on; from n = 3, where it is 4/13 > 0.3, the decay itself.
    for decay in (1 / 10, 2 / 11, 3 / 12, 0.3, 0.3):
        assert ema.current_decay() == pytest.approx(decay)
        ema.update(model)
        average = decay * average + (1.0 - decay) * 1.0
        assert weights_of(ema.module) == pytest.approx((average, 2.0 * average), rel=1e-6)


def test_every_weight_of_a_network_is_averaged(awake_unet):
    ema = ExponentialMovingAverage(awake_unet, decay=0.25)
    before = [parameter.clone() for parameter in ema.module.parameters()]
    # Channels-last, as in training, beside row-major averages.
    awake_unet.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in awake_unet.parameters():
            parameter.mul_(3.0).sub_(1.0)
    ema.update(awake_unet)
    for average, old in zip(ema.module.parameters(), before, strict=True):
        torch.testing.assert_close(average, 0.25 * old + 0.75 * (3.0 * old - 1.0), rtol=1e-5, atol=1e-6)


def test_the_average_is_a_copy_of_its_own(model):
    set_weights(model, 1.0, 1.0)
    ema = ExponentialMovingAverage(model.train(), decay=0.5)
    set_weights(model, 9.0, 9.0)
    assert weights_of(ema.module) == (1.0, 1.0)
    ema.update(model)
    assert weights_of(model) == (9.0, 9.0)
    assert not ema.module.training and model.training
    assert all(not parameter.requires_grad for parameter in ema.module.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_outside_its_range_is_an_error(model, decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
        ExponentialMovingAverage(model, decay)
