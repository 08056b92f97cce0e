"""A loss or gradient that is not finite is found, and the first such step is named."""

import dataclasses
import math

import pytest
import torch

from ddpm import train
from ddpm.training_state import NotFiniteError, learning_rate_at
from tests.ddpm.small_training import CONFIG, NUM_STEPS


def spoil_loss(state, step):
    """Make one pixel infinite in one step; it has no gradient, so that later steps are good."""

    def spoil(_model, _arguments, output):
        pixel = torch.zeros_like(output, dtype=torch.bool)
        pixel[0, 0, 0, 0] = state.step == step - 1
        return torch.where(pixel, math.inf, output)

    state.model.register_forward_hook(spoil)


def spoil_gradient(state, step):
    bias = state.model.last_conv.bias
    bias.register_hook(lambda gradient: gradient * (math.inf if state.step == step - 1 else 1.0))


def run(state, images, diffusion, config):
    return [
        (event.loss.isfinite(), event.gradient_norm.isfinite()) for event in train(state, images, diffusion, config)
    ]


@pytest.mark.parametrize("step", [1, 3, NUM_STEPS])
def test_an_infinite_loss_is_found_though_later_ones_are_good(start, images, diffusion, step):
    state = start()
    spoil_loss(state, step)
    finite = run(state, images, diffusion, CONFIG)
    assert finite == [(number != step, True) for number in range(1, NUM_STEPS + 1)]
    with pytest.raises(NotFiniteError, match=f"step {step} is not finite, at a learning rate of") as error:
        state.check_finite(CONFIG)
    assert (error.value.step, error.value.learning_rate) == (step, learning_rate_at(step - 1, CONFIG))
    assert f"{error.value.learning_rate:g}" in str(error.value)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_an_infinite_gradient_is_found_and_the_first_bad_step_is_named(start, images, diffusion, clip):
    config = dataclasses.replace(CONFIG, gradient_clip=clip)
    state = start(config)
    spoil_gradient(state, 3)
    finite = run(state, images, diffusion, config)
    assert finite[:3] == [(True, True), (True, True), (True, False)]
    assert not any(loss for loss, _ in finite[3:])  # the weights are gone, and with them all that comes
    with pytest.raises(NotFiniteError) as error:
        state.check_finite(config)
    assert (error.value.step, error.value.learning_rate) == (3, learning_rate_at(2, config))


def test_a_bad_step_is_not_forgotten_between_two_calls(start, images, diffusion):
    state = start()
    state.check_finite(CONFIG)
    spoil_loss(state, 3)
    for last in (5, NUM_STEPS):
        for event in train(state, images, diffusion, CONFIG):
            if event.step < 3:
                state.check_finite(CONFIG)
            if event.step == last:
                break
    with pytest.raises(NotFiniteError) as error:
        state.check_finite(CONFIG)
    assert error.value.step == 3
