"""Predict the time of a training step on a GPU, by part: `python -m bench.gpu predict`.

Every part is bound by arithmetic or by memory. The shapes are those of the network; the rates are the card's own matrix
product and copy, and the shares of them that such kernels reach elsewhere.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddpm.config import UNetConfig
from ddpm.unet import Downsample, SelfAttention, UNet, Upsample

CONVOLUTION_SHARE = 0.5
"""Share of a large matrix product's rate that cuDNN's convolutions reach, as on other networks of such widths."""
DENSE_SHARE = 0.4
MEMORY_SHARE = 0.8
"""Share of a copy's rate reached by kernels that read and write once."""
SECONDS_BETWEEN_KERNELS = 1.0e-6
KERNELS_A_LAYER = 7
"""Kernels of a layer with weights, forward and backward, of which a replayed step launches each after the other."""

_HALF, _FULL = 2, 4
"""Bytes of bfloat16 and float32."""


def predict_step(
    config: UNetConfig, image_size: int, batch_size: int, products_a_second: float, bytes_a_second: float
) -> dict[str, float]:
    """Return milliseconds by part, and their sum.

    Args:
        config: the network.
        image_size: height and width.
        batch_size: images of the step.
        products_a_second: operations of a large bfloat16 matrix product.
        bytes_a_second: of a large copy on the device, read and written ones counted.
    """
    counts = count_work(config, image_size, batch_size)
    memory = MEMORY_SHARE * bytes_a_second
    num_weights = counts["weights"]
    seconds = {
        "convolutions": counts["convolution operations"] / (CONVOLUTION_SHARE * products_a_second),
        "dense layers": counts["dense operations"] / (DENSE_SHARE * products_a_second),
        "attention": counts["attention operations"] / (DENSE_SHARE / 2 * products_a_second),
        # Norm and SiLU: forward two reads and a write; backward x and the gradient twice, and a write.
        "norms and activations": counts["normalised numbers"] * 8 * _HALF / memory,
        # Sums with the residual and with the time, and the joined features of the way up; both directions.
        "sums and joins": counts["features"] * 4 * _HALF / memory,
        "casts of weights and gradients": num_weights * 2 * (_HALF + _FULL) / memory,
        # The gradient's norm reads once; Adam reads 4 and writes 3; an average reads 2 and writes 1.
        "norm, Adam and average": num_weights * (1 + 7 + 3) * _FULL / memory,
        "gaps between kernels": counts["layers"] * KERNELS_A_LAYER * SECONDS_BETWEEN_KERNELS,
    }
    milliseconds = {name: round(1e3 * value, 2) for name, value in seconds.items()}
    return milliseconds | {"all": round(1e3 * sum(seconds.values()), 2)}


def count_work(config: UNetConfig, image_size: int, batch_size: int) -> dict[str, float]:
    """Return operations (forward and backward), numbers and layers of a step."""
    counts: dict[str, float] = defaultdict(float)
    with torch.device("meta"):
        unet = UNet(config)
        x_t = torch.empty(batch_size, config.image_channels, image_size, image_size)
        t = torch.empty(batch_size, dtype=torch.int64)
    for module in unet.modules():
        if type(module) in _COUNTERS:
            module.register_forward_hook(_counting(counts, _COUNTERS[type(module)]))
    unet(x_t, t)
    counts["weights"] = float(sum(parameter.numel() for parameter in unet.parameters()))
    return dict(counts)


Counter = Callable[[dict[str, float], nn.Module, Tensor, Tensor], None]


def _counting(counts: dict[str, float], count: Counter) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts["layers"] += 1
        count(counts, module, inputs[0], output)

    return hook


def _count_convolution(counts: dict[str, float], module: nn.Module, _x: Tensor, output: Tensor) -> None:
    assert isinstance(module, nn.Conv2d)
    # A product and a sum each; forward, and backward to the input and to the weights.
    counts["convolution operations"] += 3 * 2 * output.numel() * module.weight[0].numel()
    counts["features"] += output.numel()


def _count_downsampling(counts: dict[str, float], module: nn.Module, x: Tensor, output: Tensor) -> None:
    assert isinstance(module, Downsample)
    _count_convolution(counts, module.conv, x, output)


def _count_upsampling(counts: dict[str, float], module: nn.Module, x: Tensor, output: Tensor) -> None:
    assert isinstance(module, Upsample)
    border = (1 + 1 / x.shape[2]) * (1 + 1 / x.shape[3])
    counts["convolution operations"] += 3 * 2 * output.numel() * module.conv.weight[0].numel() * 4 / 9 * border
    counts["features"] += output.numel()


def _count_dense(counts: dict[str, float], module: nn.Module, x: Tensor, _output: Tensor) -> None:
    assert isinstance(module, nn.Linear)
    counts["dense operations"] += 3 * 2 * x.numel() * module.out_features


def _count_norm(counts: dict[str, float], _module: nn.Module, x: Tensor, _output: Tensor) -> None:
    counts["normalised numbers"] += x.numel()


def _count_attention(counts: dict[str, float], _module: nn.Module, x: Tensor, _output: Tensor) -> None:
    batch, channels, height, width = x.shape
    # Scores and weighted sum, each once forward and twice backward.
    counts["attention operations"] += 3 * 2 * 2 * batch * (height * width) ** 2 * channels


_COUNTERS: dict[type[nn.Module], Counter] = {
    nn.Conv2d: _count_convolution,
    Downsample: _count_downsampling,
    Upsample: _count_upsampling,
    nn.Linear: _count_dense,
    nn.GroupNorm: _count_norm,
    SelfAttention: _count_attention,
}
