"""The noise-predicting U-Net of Ho et al. 2020, as sized by the Keras example on Oxford Flowers 102."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm.checks import require_images
from ddpm.classes import NO_CLASS
from ddpm.config import UNetConfig
from ddpm.operations import (
    DoubledFeatures,
    Features,
    HalvedFeatures,
    apply_together,
    attend,
    double_and_convolve,
    halve_and_convolve,
    normalize,
)
from ddpm.shapes import Float, Int64

WidenedFeatures = Float[Tensor, "batch other_channels height width"]
Embedding = Float[Tensor, "batch embedding"]
Shift = Float[Tensor, "batch other_channels"]


class UNet(nn.Module):
    """A network that predicts the noise in an image: eps_pred = unet(x_t, t), or unet(x_t, t, labels) with classes.

    Ho et al. 2020, appendix B. The residual of self-attention starts from the un-normalised input, as in the paper.
    Downsampling pads at the bottom and right alone (TensorFlow's "same"), as the paper's code and the Keras example do.
    An embedding of the class is added to that of the time step (Nichol & Dhariwal 2021, section 5).

    Attributes:
        gradient_checkpointing: keep only the inputs of the blocks for the backward pass, and compute the rest again
            (Chen et al. 2016): a third more arithmetic for a fraction of the memory, and the same gradients.
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.config = config = config or UNetConfig()
        widths, first, last = config.widths, config.widths[0], config.widths[-1]

        self.time_embedding = TimeEmbedding(config.time_embedding_dim)
        self.first_conv = scaled_conv(config.image_channels, first, kernel_size=3)
        skip_widths = [first]

        self.down = nn.ModuleList()
        width_in = first
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                self.down.append(Block(width_in, width, config.attention[level], config))
                skip_widths.append(width)
                width_in = width
            if level != len(widths) - 1:
                self.down.append(Downsample(width))
                skip_widths.append(width)

        self.middle = nn.ModuleList([Block(last, last, True, config), Block(last, last, False, config)])

        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.num_res_blocks + 1):
                self.up.append(Block(width_in + skip_widths.pop(), width, config.attention[level], config))
                width_in = width
            if level != 0:
                self.up.append(Upsample(width))

        self.last_norm = nn.GroupNorm(config.norm_groups, first)
        self.last_conv = scaled_conv(first, config.image_channels, kernel_size=3, scale=0.0)
        # Drawn last, so that all other weights start as those of the network without classes.
        self.class_embedding = None if config.num_classes is None else ClassEmbedding(config.num_classes, config)

    def forward(
        self, x_t: Features, t: Int64[Tensor, " batch"], labels: Int64[Tensor, " batch"] | None = None
    ) -> Features:
        """Return the prediction for `x_t`: eps, or v or x_0 if it was trained on those.

        Args:
            x_t: noisy images; height and width are multiples of `config.downsampling`.
            t: time steps, 0 … T-1.
            labels: classes of the images, 0 … num_classes-1 or NO_CLASS; None means NO_CLASS for all.

        Raises:
            ValueError: these are no images of its channels, height or width is not a multiple, or a network without
                classes got labels.
        """
        require_images(x_t, "x_t", (self.config.image_channels,))
        height, width = x_t.shape[-2:]
        if height % self.config.downsampling or width % self.config.downsampling:
            raise ValueError(f"image size must be a multiple of {self.config.downsampling}, got {height}x{width}")
        embedding = self.time_embedding(t)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(torch.full_like(t, NO_CLASS) if labels is None else labels)
        elif labels is not None:
            raise ValueError("the network knows no classes, got labels: leave them out, or set num_classes")
        shifts = self._shifts(embedding)
        x = self.first_conv(x_t)
        skips = [x]
        for layer in self.down:
            x = self._run(layer, x, shifts)
            skips.append(x)
        for layer in self.middle:
            x = self._run(layer, x, shifts)
        for layer in self.up:
            if isinstance(layer, Block):
                x = torch.cat([x, skips.pop()], dim=1)
            x = self._run(layer, x, shifts)
        return self.last_conv(F.silu(normalize(x, self.last_norm)))  # type: ignore[no-any-return]

    def _shifts(self, embedding: Embedding) -> Iterator[Shift]:
        """Return the summand that the embedding gives each block's features, in the order in which the blocks run."""
        blocks = [layer for part in (self.down, self.middle, self.up) for layer in part if isinstance(layer, Block)]
        return iter(apply_together(F.silu(embedding), [block.residual.time for block in blocks]))

    def _run(self, layer: nn.Module, x: Tensor, shifts: Iterator[Tensor]) -> Tensor:
        inputs = (x, next(shifts)) if isinstance(layer, Block) else (x,)
        if self.gradient_checkpointing and self.training:
            # Saving the generator's state waits for the device, and only dropout needs it.
            keeps_generator = self.config.dropout > 0.0
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=keeps_generator)  # type: ignore[no-any-return]
        return layer(*inputs)  # type: ignore[no-any-return]


class TimeEmbedding(nn.Module):
    """Sinusoids of the time step, then two dense layers.

    Vaswani et al. 2017, section 3.5: sin(t w_i) and cos(t w_i), w_i = 10000^(-i / (d/2 - 1)), i = 0 … d/2 - 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(-math.log(10_000.0) / (half - 1) * torch.arange(half, dtype=torch.float64)).float()
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.first = scaled_linear(dim, dim)
        self.second = scaled_linear(dim, dim)

    def forward(self, t: Int64[Tensor, " batch"]) -> Embedding:
        angles = t.float()[:, None] * self.frequencies[None, :]
        sinusoids = torch.cat([angles.sin(), angles.cos()], dim=1)
        return self.second(F.silu(self.first(sinusoids)))  # type: ignore[no-any-return]


class ClassEmbedding(nn.Module):
    """A vector for NO_CLASS and one for each class; they start standard normal."""

    def __init__(self, num_classes: int, config: UNetConfig) -> None:
        super().__init__()
        self.vectors = nn.Embedding(num_classes + 1, config.time_embedding_dim)

    def forward(self, labels: Int64[Tensor, " batch"]) -> Embedding:
        return self.vectors(labels - NO_CLASS)  # type: ignore[no-any-return]


class Block(nn.Module):
    """A residual block, followed by self-attention if the level has it."""

    def __init__(self, width_in: int, width: int, has_attention: bool, config: UNetConfig) -> None:
        super().__init__()
        self.residual = ResidualBlock(width_in, width, config)
        self.attention = SelfAttention(width, config.norm_groups) if has_attention else nn.Identity()

    def forward(self, x: Features, shift: Shift) -> WidenedFeatures:
        return self.attention(self.residual(x, shift))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """norm, swish, conv; plus the time; norm, swish, dropout, conv that starts at zero; plus the input.

    The network applies `time` for all blocks together and passes each block its result, the shift.
    """

    def __init__(self, width_in: int, width: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(config.norm_groups, width_in)
        self.conv_1 = scaled_conv(width_in, width, kernel_size=3)
        self.time = scaled_linear(config.time_embedding_dim, width)
        self.norm_2 = nn.GroupNorm(config.norm_groups, width)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_2 = scaled_conv(width, width, kernel_size=3, scale=0.0)
        self.shortcut = scaled_conv(width_in, width, kernel_size=1) if width_in != width else nn.Identity()

    def forward(self, x: Features, shift: Shift) -> WidenedFeatures:
        h = self.conv_1(F.silu(normalize(x, self.norm_1)))
        h = h + shift[:, :, None, None]
        h = self.conv_2(self.dropout(F.silu(normalize(h, self.norm_2))))
        return h + self.shortcut(x)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Single-head self-attention over all pixels.

    Ho et al. 2020, appendix B; Vaswani et al. 2017, Eq. 1: softmax(q k^T / sqrt(channels)) v.
    """

    def __init__(self, width: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, width)
        self.query = scaled_linear(width, width)
        self.key = scaled_linear(width, width)
        self.value = scaled_linear(width, width)
        self.project = scaled_linear(width, width, scale=0.0)

    def forward(self, x: Features) -> Features:
        batch, channels, height, width = x.shape
        pixels = normalize(x, self.norm).flatten(2).transpose(1, 2)
        query, key, value = apply_together(pixels, (self.query, self.key, self.value))
        attended = self.project(attend(query, key, value))
        return x + attended.transpose(1, 2).reshape(batch, channels, height, width)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halving of height and width by a strided convolution, padded at the bottom and right as in the published code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel_size=3, stride=2)
        _variance_scaling_(self.conv, scale=1.0)

    def forward(self, x: Features) -> HalvedFeatures:
        return halve_and_convolve(x, self.conv)


class Upsample(nn.Module):
    """Doubling of height and width by nearest neighbours and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = scaled_conv(width, width, kernel_size=3)

    def forward(self, x: Features) -> DoubledFeatures:
        return double_and_convolve(x, self.conv)


def scaled_conv(channels_in: int, channels_out: int, *, kernel_size: int, scale: float = 1.0) -> nn.Conv2d:
    """Return a "same" convolution, initialised by variance scaling."""
    conv = nn.Conv2d(channels_in, channels_out, kernel_size, padding=kernel_size // 2)
    _variance_scaling_(conv, scale)
    return conv


def scaled_linear(features_in: int, features_out: int, *, scale: float = 1.0) -> nn.Linear:
    """Return a dense layer, initialised by variance scaling."""
    linear = nn.Linear(features_in, features_out)
    _variance_scaling_(linear, scale)
    return linear


def _variance_scaling_(layer: nn.Conv2d | nn.Linear, scale: float) -> None:
    """Draw uniform weights of variance scale / mean(fan_in, fan_out), zero biases (scale 1: Glorot & Bengio 2010)."""
    if scale == 0.0:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(scale))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
