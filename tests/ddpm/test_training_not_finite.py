"""A loss or gradient that is not finite is found, and the first such step is named."""

import dataclasses
import math

import pytest
import torch

from ddpm import train
from ddpm.training_state import NotFiniteError, learning_rate_at
from tests.ddpm.small_training import CONFIG, NUM_STEPS, start


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


@pytest.mark.parametrize(
    ("spoil", "step", "clip"),
    [*((spoil_loss, step, 0.5) for step in (1, 3, NUM_STEPS)), *((spoil_gradient, 3, clip) for clip in (None, 0.5))],
)
def test_the_first_step_that_is_not_finite_is_named(images, diffusion, spoil, step, clip):
    config = dataclasses.replace(CONFIG, gradient_clip=clip)
    state = start(config)
    spoil(state, step)
    events = list(train(state, images, diffusion, config))
    losses = [bool(event.loss.isfinite()) for event in events]
    if spoil is spoil_loss:
        assert losses == [number != step for number in range(1, NUM_STEPS + 1)]  # later ones are good
        assert all(event.gradient_norm.isfinite() for event in events)
    else:
        assert losses == [number <= step for number in range(1, NUM_STEPS + 1)]  # the weights are gone
        assert [bool(event.gradient_norm.isfinite()) for event in events[:step]] == [True, True, False]
    with pytest.raises(NotFiniteError, match=f"step {step} is not finite, at a learning rate of") as error:
        state.check_finite(config)
    assert (error.value.step, error.value.learning_rate) == (step, learning_rate_at(step - 1, config))
    assert f"{error.value.learning_rate:g}" in str(error.value)


def test_a_bad_step_is_not_forgotten_between_two_calls(images, diffusion):
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
