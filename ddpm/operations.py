"""The network's operations, each arranged to avoid what its device is slow at: launches, layout changes, products.

Every function equals its plain form in `torch.nn.functional`, up to the order of additions.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.shapes import Float

Features = Float[Tensor, "batch channels height width"]
DoubledFeatures = Float[Tensor, "batch other_channels 2*height 2*width"]
HalvedFeatures = Float[Tensor, "batch other_channels height//2 width//2"]
Tokens = Float[Tensor, "batch pixels channels"]

_LARGEST_FLASH_DIM = 256
"""Channels of a head up to which the attention kernels of GPUs are fast; above it they fall back to a slow one."""

_LEAST_PIXELS, _LEAST_PIXELS_A_CHANNEL = 1024, 2
"""Pixels of a batch, before doubling, from which `convolve_before_doubling` earns back its sums of weights and its more
numerous operations (two cores with AVX512: 1.0 to 1.3 times as fast there, 1.8 at most, half as fast far below)."""


def normalize(x: Features, norm: nn.GroupNorm) -> Features:
    """Return GroupNorm of `x` (Wu & He 2018) without leaving its memory layout.

    On a GPU PyTorch's own kernel copies channels-last features to rows and its result back; the form written out below
    stays channels-last.
    """
    if x.device.type != "cuda":
        return norm(x)  # type: ignore[no-any-return]
    return normalize_channels_last(x, norm)


def normalize_channels_last(x: Features, norm: nn.GroupNorm) -> Features:
    """Return GroupNorm of `x` in float32, written out as a factor and a summand for each channel of each image.

    Factor and summand are applied to the features, not to their groups. The loops are then those of the operations
    before and after it, such as SiLU, and a compiler fuses them (36 % less memory moved by all fused kernels of a step,
    counted in generated code).
    """
    x = x.float()  # once: two casts would have their gradients added in bfloat16
    batch, channels, height, width = x.shape
    groups = x.permute(0, 2, 3, 1).reshape(batch, height * width, norm.num_groups, -1)
    variance, mean = torch.var_mean(groups, dim=(1, 3), correction=0)
    scale = torch.rsqrt(variance + norm.eps)[:, :, None] * norm.weight.view(norm.num_groups, -1)
    shift = norm.bias.view(norm.num_groups, -1) - mean[:, :, None] * scale
    return torch.addcmul(shift.reshape(batch, channels, 1, 1), x, scale.reshape(batch, channels, 1, 1))


def apply_together(x: Tensor, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """Return the outputs of several dense layers for the same input; on a GPU by one product for all of them."""
    if x.device.type != "cuda":
        return tuple(layer(x) for layer in layers)
    return apply_joined(x, layers)


def apply_joined(x: Tensor, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """Return the outputs of the layers for `x`, by one product with their stacked weights."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return torch.split(F.linear(x, weight, bias), [layer.out_features for layer in layers], dim=-1)


def attend(query: Tokens, key: Tokens, value: Tokens) -> Tokens:
    """Return single-head attention, softmax(q k^T / sqrt(channels)) v (Vaswani et al. 2017, Eq. 1)."""
    if query.device.type == "cuda" and query.shape[-1] > _LARGEST_FLASH_DIM:
        return attend_by_products(query, key, value)
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]


def attend_by_products(query: Tokens, key: Tokens, value: Tokens) -> Tokens:
    """Return `attend` computed by two products, with the softmax in float32."""
    scores = (query / math.sqrt(query.shape[-1])) @ key.mT
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


def halve_and_convolve(x: Features, conv: nn.Conv2d) -> HalvedFeatures:
    """Return a 3×3 convolution of every second pixel, padded as TensorFlow's "same" does: at the bottom and right."""
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)


def double_and_convolve(x: Features, conv: nn.Conv2d) -> DoubledFeatures:
    """Return a "same" 3×3 convolution of `x` with height and width doubled by nearest neighbours."""
    return convolve_after_doubling(x, conv) if is_doubled_first(x) else convolve_before_doubling(x, conv)


def is_doubled_first(x: Features) -> bool:
    """Return whether a batch is too small to earn back the sums of weights of `convolve_before_doubling`."""
    batch, channels, height, width = x.shape
    return batch * height * width < max(_LEAST_PIXELS, _LEAST_PIXELS_A_CHANNEL * channels)


def convolve_after_doubling(x: Features, conv: nn.Conv2d) -> DoubledFeatures:
    """Return `double_and_convolve` computed in the plain way."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), conv.weight, conv.bias, padding=1)


def convolve_before_doubling(x: Features, conv: nn.Conv2d) -> DoubledFeatures:
    """Return `double_and_convolve` computed by four 2×2 convolutions of the small image: 4/9 of the products.

    A 3×3 kernel on the doubled image covers two rows and two columns of the small one. For each of the four phases
    (even or odd row and column) the taps that meet the same small pixel are summed. One convolution of the padded image
    computes all four, and each phase keeps its own corner.
    """
    batch, _, height, width = x.shape
    phases = F.conv2d(x, sum_taps(conv.weight), conv.bias.repeat(4) if conv.bias is not None else None, padding=1)
    corners = phases.permute(0, 2, 3, 1).reshape(batch, height + 1, width + 1, 2, 2, -1)  # rows, columns, channels last
    rows = [torch.stack([corners[:, i : i + height, j : j + width, i, j] for j in range(2)], dim=3) for i in range(2)]
    doubled = torch.stack(rows, dim=2).reshape(batch, 2 * height, 2 * width, -1)
    return doubled.permute(0, 3, 1, 2)


def sum_taps(
    weight: Float[Tensor, "channels_out channels_in 3 3"],
) -> Float[Tensor, "4*channels_out channels_in 2 2"]:
    """Return the four 2×2 kernels, by row and column of the phase, that equal a 3×3 kernel on a doubled image.

    Row 2i of the doubled image sees rows i-1, i and i of the small one, row 2i+1 sees i, i and i+1. The sums are taken
    in float32.
    """
    first, middle, last = weight.float().unbind(dim=2)
    by_row = [torch.stack(pair, dim=2) for pair in ((first, middle + last), (first + middle, last))]
    kernels = []
    for rows in by_row:
        first, middle, last = rows.unbind(dim=3)
        kernels += [torch.stack(pair, dim=3) for pair in ((first, middle + last), (first + middle, last))]
    return torch.cat(kernels).to(weight.dtype)
