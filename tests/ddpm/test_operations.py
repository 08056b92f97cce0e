"""Each arrangement of an operation, for a GPU or a CPU, against its plain form in float64, backward passes included."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddpm.operations import (
    apply_joined,
    apply_together,
    attend,
    attend_by_products,
    convolve_before_doubling,
    double_and_convolve,
    halve_and_convolve,
    normalize_channels_last,
)
from tests.ddpm.small_networks import awake, noise


def channels_last(*shape):
    return noise(*shape).contiguous(memory_format=torch.channels_last)


def results(function, x, module):
    """Return the outputs, and the gradients of input and weights for a weighted sum of the outputs."""
    x = x.clone().requires_grad_(True)
    module.zero_grad()
    out = function(x, module)
    outputs = out if isinstance(out, tuple) else (out,)
    sum((each * noise(*each.shape, seed=9).to(each.dtype)).sum() for each in outputs).backward()
    return [*outputs, x.grad, *(parameter.grad for parameter in module.parameters())]


def assert_equal_to_float64(function, plain, x, module):
    found = results(function, x, module)
    expected = results(plain, x.double(), copy.deepcopy(module).double())
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5 * max(1.0, scale))


@pytest.mark.parametrize(("mean", "shape"), [(0.0, (3, 16, 5, 4)), (20.0, (2, 8, 8, 8))])
def test_a_norm_equals_group_norm(mean, shape):
    x, norm = channels_last(*shape) + mean, awake(nn.GroupNorm(4, shape[1]))
    assert_equal_to_float64(normalize_channels_last, lambda x, norm: norm(x), x, norm)
    assert normalize_channels_last(x, norm).is_contiguous(memory_format=torch.channels_last)


def test_a_norm_of_half_precision_is_computed_in_float32():
    x = channels_last(2, 8, 4, 6).to(torch.bfloat16)
    out = normalize_channels_last(x, nn.GroupNorm(4, 8))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, F.group_norm(x.float(), 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("function", [apply_together, apply_joined])
def test_layers_together_give_what_each_gives(function):
    layers = nn.ModuleList([nn.Linear(6, width) for width in (4, 8, 3)])

    def ours(x, layers):
        return function(x, list(layers))

    assert_equal_to_float64(ours, lambda x, layers: tuple(layer(x) for layer in layers), noise(2, 5, 6), layers)


@pytest.mark.parametrize("function", [attend, attend_by_products])
def test_attention_equals_the_formula(function):
    def plain(x, layers):
        query, key, value = (layer(x) for layer in layers)
        scores = torch.exp(query @ key.mT / 24**0.5)
        return scores / scores.sum(dim=-1, keepdim=True) @ value

    layers = nn.ModuleList([nn.Linear(24, 24) for _ in range(3)])
    assert_equal_to_float64(
        lambda x, layers: function(*(layer(x) for layer in layers)), plain, noise(2, 10, 24), layers
    )


def test_attention_of_large_scores_stays_finite_in_half_precision():
    query = torch.full((1, 4, 512), 30.0, dtype=torch.bfloat16)
    out = attend_by_products(query, query, torch.ones(1, 4, 512, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=0.01)


@pytest.mark.parametrize("shape", [(2, 6, 4, 6), (1, 6, 2, 2), (3, 6, 8, 8)])
def test_downsampling_equals_tensorflows_convolution_of_stride_two(shape):
    def plain(x, conv):
        # TensorFlow's formula of "same" for a kernel of 3 and a stride of 2.
        height, width = x.shape[2:]
        before_and_after = [
            (total // 2, total - total // 2)
            for size in (width, height)
            for total in [max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0)]
        ]
        padded = F.pad(x, (*before_and_after[0], *before_and_after[1]))
        taps = [
            torch.einsum("oi,bihw->bohw", conv.weight[:, :, i, j], padded[:, :, i : i + height : 2, j : j + width : 2])
            for i in range(3)
            for j in range(3)
        ]
        return sum(taps) + conv.bias[:, None, None]

    assert_equal_to_float64(halve_and_convolve, plain, channels_last(*shape), nn.Conv2d(6, 4, 3, stride=2))


@pytest.mark.parametrize("function", [double_and_convolve, convolve_before_doubling])
@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (1, 6, 1, 1), (16, 6, 8, 8)])
def test_upsampling_equals_doubling_and_a_convolution(function, shape):
    def plain(x, conv):
        return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    x, conv = channels_last(*shape), nn.Conv2d(6, 4, 3, padding=1)
    assert_equal_to_float64(function, plain, x, conv)
    if function is convolve_before_doubling:
        assert function(x, conv).is_contiguous(memory_format=torch.channels_last)
