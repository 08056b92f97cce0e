"""Noise for sampling, one independent stream per image, so that the batch size never changes it."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddpm.checks import describe
from ddpm.seeds import stream_seed
from ddpm.shapes import Float

_LARGEST_BLOCK_SIZE = 16

_BLOCK_BYTES = 2**20
"""Largest block of one image: the blocks of 1,024 images then take at most a GiB."""


class ImageNoise:
    """Standard normal noise in which image i depends on the seed and on i alone.

    The first draw of each image is made alone, since some samplers need no other. Later draws are made in blocks of
    `block_size`, with one random kernel per block: one draw on a CPU; on a GPU, where each kernel costs a launch, the
    number that `choose_block_size` returns. Blocks are always drawn whole, and their size depends on the shape of an
    image, not on the batch: draw k of image i is the same in any batch and for any number of draws.

    Args:
        seed: seed of the whole set, at least 0.
        image_numbers: numbers, in the set, of the images of this batch, each at least 0.
        image_shape: (channels, height, width).
        device: device that draws the noise; a CPU and a GPU draw different noise, and so may two kinds of GPU.

    Raises:
        ValueError: the seed or a number is negative.
    """

    def __init__(
        self,
        seed: int,
        image_numbers: Sequence[int],
        image_shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.image_shape = image_shape
        self.device = torch.device(device)
        self._generators = [
            torch.Generator(self.device).manual_seed(stream_seed(seed, number)) for number in image_numbers
        ]
        self.block_size = 1 if self.device.type == "cpu" else choose_block_size(image_shape)
        self._draws = self._draw_in_blocks()

    def draw(self) -> Float[Tensor, "batch channels height width"]:
        """Return the next noise of each image."""
        return next(self._draws)

    def _draw_in_blocks(self) -> Iterator[Tensor]:
        yield from self._draw_block(1)
        while True:
            yield from self._draw_block(self.block_size)

    def _draw_block(self, size: int) -> tuple[Tensor, ...]:
        block = torch.empty(len(self._generators), size, *self.image_shape, device=self.device)
        for draws, generator in zip(block, self._generators, strict=True):
            draws.normal_(generator=generator)
        return block.unbind(dim=1)


class InterpolatedNoise(ImageNoise):
    """Noise interpolated between that of two images.

    Each draw is interpolated between the draws of the two images (see `slerp`). A sampler without noise of its own then
    turns the first draws into a sequence of images (Song, Meng & Ermon 2021, section 5.3; compare Ho et al. 2020,
    section 4.3). For a sampler with noise, the noise of each step is interpolated, too. With either, fractions 0 and 1
    give the two images.

    Args:
        seed: seed of the whole set, at least 0.
        ends: the numbers of the two images, which differ.
        fractions: position of each image of the batch between the two, in [0, 1].
        image_shape: (channels, height, width).
        device: device that draws the noise.

    Raises:
        ValueError: the ends are the same, a fraction lies outside [0, 1], or the seed or a number is negative.
    """

    def __init__(
        self,
        seed: int,
        ends: tuple[int, int],
        fractions: Float[Tensor, " batch"],
        image_shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        if ends[0] == ends[1]:
            raise ValueError(f"the ends of an interpolation must differ, got image {ends[0]} twice")
        if not bool(((fractions >= 0.0) & (fractions <= 1.0)).all()):
            raise ValueError(f"fractions must lie in [0, 1], got {describe(fractions)}")
        super().__init__(seed, ends, image_shape, device)
        self.fractions = fractions.to(self.device)

    def draw(self) -> Float[Tensor, "batch channels height width"]:
        """Return the next noise of each image."""
        first, last = super().draw()
        return slerp(first, last, self.fractions)


def choose_block_size(image_shape: tuple[int, int, int]) -> int:
    """Return the number of draws of an image that a GPU makes at a time: 16, fewer if they take more than a MiB."""
    bytes_per_draw = math.prod(image_shape) * torch.float32.itemsize
    return max(1, min(_LARGEST_BLOCK_SIZE, _BLOCK_BYTES // bytes_per_draw))


def slerp(
    first: Float[Tensor, "channels height width"],
    last: Float[Tensor, "channels height width"],
    fractions: Float[Tensor, " images"],
) -> Float[Tensor, "images channels height width"]:
    """Return the spherical linear interpolation of two noises, which keeps the norm of standard normal noise.

    Song, Meng & Ermon 2021, appendix D.5, after Shoemake 1985: (sin((1 - a) theta) first + sin(a theta) last) /
    sin(theta), theta the angle between the two.

    Args:
        first: the result for fraction 0.
        last: the result for fraction 1; not parallel to the first.
        fractions: a, in [0, 1].
    """
    theta = torch.arccos((first * last).sum() / (first.norm() * last.norm()))
    weights_first, weights_last = (
        (torch.sin(share * theta) / torch.sin(theta)).reshape(-1, 1, 1, 1) for share in (1.0 - fractions, fractions)
    )
    return weights_first * first + weights_last * last


def require_eta(eta: float) -> None:
    """Check the share of noise that a sampler adds.

    Raises:
        ValueError: `eta` lies outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
