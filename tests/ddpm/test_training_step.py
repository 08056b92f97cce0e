"""Half-precision twins of the weights, which a GPU trains with, against autocast; buffers of networks."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from ddpm import TrainingState, train
from ddpm.checkpoint import load_checkpoint, save_checkpoint
from ddpm.training_step import HalfWeights
from tests.ddpm.small_networks import awake
from tests.ddpm.small_training import CONFIG, assert_same_bits, snapshot, start


@pytest.fixture
def model():
    """A network whose layers have all moved off the zeros that some start with."""
    return awake(start().model).train()


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def loss_of(network, part):
    x_t, t = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 10, 19])
    with torch.autocast("cpu", torch.bfloat16):
        return network(x_t[part], t[part]).square().mean()


@pytest.mark.parametrize("parts", [[slice(0, 4)], [slice(0, 2), slice(2, 4)]])
def test_gradients_of_half_weights_are_those_of_autocast_in_float32(model, parts):
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


@pytest.mark.parametrize("changes", [{}, {"accumulation_steps": 2}])
def test_a_training_on_half_weights_learns_as_one_under_autocast(images, diffusion, monkeypatch, changes):
    config = dataclasses.replace(CONFIG, precision="bfloat16", **changes)
    losses, states = [], []
    for may_halve in (False, True):
        monkeypatch.setattr("ddpm.training_step.may_halve", lambda *_, may_halve=may_halve: may_halve)
        states.append(start(config))
        losses.append([float(event.loss) for event in train(states[-1], images, diffusion, config)])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    before = dict(start(config).model.named_parameters())
    for name, weight in states[1].model.named_parameters():
        assert not torch.equal(weight, before[name]), name  # each has learnt something


class Normalised(nn.Module):
    """A network with running statistics and a count, as batch normalisation keeps them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))

    def forward(self, x_t, _t):
        return self.layers(x_t)


@pytest.mark.parametrize("may_halve", [False, True])
@pytest.mark.parametrize("ema_warmup", [False, True])
def test_averages_have_the_buffers_of_the_network_also_when_resumed(
    images, diffusion, tmp_path, monkeypatch, may_halve, ema_warmup
):
    monkeypatch.setattr("ddpm.training_step.may_halve", lambda *_: may_halve)
    changes = {"precision": "bfloat16" if may_halve else "float32", "ema_warmup": ema_warmup}
    config = dataclasses.replace(CONFIG, num_steps=4, extra_ema_decays=(0.5,), **changes)
    torch.manual_seed(0)
    first = Normalised()
    state, resumed = (TrainingState.start(copy.deepcopy(first), config) for _ in range(2))
    for event in train(state, images, diffusion, config):
        if event.step == 2:
            path = save_checkpoint(tmp_path, state, {}, {}, keep=1)
    load_checkpoint(path, resumed, {})
    assert [event.step for event in train(resumed, images, diffusion, config)] == [3, 4]
    assert_same_bits(snapshot(resumed), snapshot(state))
    buffers = dict(state.model.named_buffers())
    assert int(buffers["layers.1.num_batches_tracked"]) == 4
    assert not torch.equal(buffers["layers.1.running_mean"], first.layers[1].running_mean)
    for ema in state.emas:
        assert_same_bits(dict(ema.module.named_buffers()), buffers)


def test_a_shared_weight_has_one_half_and_a_frozen_one_stays_frozen():
    layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    layers[1].weight = layers[0].weight
    layers[0].bias.requires_grad_(False)
    half = HalfWeights(layers)
    half.network(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    half.hand_over_gradients()
    assert half.network[0].weight is half.network[1].weight
    assert layers[0].bias.grad is None
    found = layers[0].weight.grad.clone()
    layers.zero_grad()
    layers(torch.ones(1, 3)).sum().backward()
    torch.testing.assert_close(found, layers[0].weight.grad, rtol=0.03, atol=0.03)


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
