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
    sum_taps,
)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def channels_last(*shape):
    return noise(*shape).contiguous(memory_format=torch.channels_last)


def results(function, x, module):
    """The outputs, and the gradients of the input and of the weights, of the outputs' weighted sum."""
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


def awake_norm(groups, channels):
    norm = nn.GroupNorm(groups, channels)
    with torch.no_grad():
        norm.weight.copy_(1.0 + 0.3 * noise(channels, seed=1))
        norm.bias.copy_(0.3 * noise(channels, seed=2))
    return norm


@pytest.mark.parametrize(("mean", "shape"), [(0.0, (3, 16, 5, 4)), (20.0, (2, 8, 8, 8))])
def test_a_norm_equals_group_norm(mean, shape):
    x = channels_last(*shape) + mean
    assert_equal_to_float64(normalize_channels_last, lambda x, norm: norm(x), x, awake_norm(4, shape[1]))


def test_a_norm_stays_channels_last():
    out = normalize_channels_last(channels_last(2, 8, 4, 6), nn.GroupNorm(4, 8))
    assert out.is_contiguous(memory_format=torch.channels_last)


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


class Projections(nn.Module):
    """Query, key and value of the same pixels."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])


@pytest.mark.parametrize("function", [attend, attend_by_products])
def test_attention_equals_the_formula(function):
    def plain(x, projections):
        query, key, value = (layer(x) for layer in projections.layers)
        scores = torch.exp(query @ key.mT / 24**0.5)
        return scores / scores.sum(dim=-1, keepdim=True) @ value

    def ours(x, projections):
        return function(*(layer(x) for layer in projections.layers))

    assert_equal_to_float64(ours, plain, noise(2, 10, 24), Projections(24))


def test_attention_of_large_scores_stays_finite_in_half_precision():
    query = torch.full((1, 4, 512), 30.0, dtype=torch.bfloat16)
    out = attend_by_products(query, query, torch.ones(1, 4, 512, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=0.01)


def pads_of_tensorflow(size):
    """Rows before and after `size` of them, by TensorFlow's formula of "same" for a kernel of 3 and a stride of 2."""
    total = max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize("size", [2, 4, 10])
def test_tensorflow_pads_even_sizes_by_one_pixel_after_them(size):
    assert pads_of_tensorflow(size) == (0, 1)


@pytest.mark.parametrize("shape", [(2, 6, 4, 6), (1, 6, 2, 2), (3, 6, 8, 8)])
def test_downsampling_equals_a_convolution_of_stride_two_padded_as_tensorflow_does(shape):
    def plain(x, conv):
        height, width = x.shape[2:]
        padded = F.pad(x, (*pads_of_tensorflow(width), *pads_of_tensorflow(height)))
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

    assert_equal_to_float64(function, plain, channels_last(*shape), nn.Conv2d(6, 4, 3, padding=1))


def test_upsampling_stays_channels_last():
    conv = nn.Conv2d(6, 4, 3, padding=1)
    out = convolve_before_doubling(channels_last(2, 6, 4, 4), conv)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_the_kernels_of_the_phases_keep_the_sum_of_the_taps():
    weight = noise(4, 6, 3, 3)
    kernels = sum_taps(weight).unflatten(0, (4, 4))
    for kernel in kernels:
        torch.testing.assert_close(kernel.sum(dim=(2, 3)), weight.sum(dim=(2, 3)), rtol=0, atol=1e-5)
    # The phase of even rows and columns: the first tap alone meets the pixel above and to the left.
    torch.testing.assert_close(kernels[0, :, :, 0, 0], weight[:, :, 0, 0], rtol=0, atol=0)
