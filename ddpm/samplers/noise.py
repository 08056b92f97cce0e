"""Noise for sampling, one independent stream an image, so that the size of a batch never changes it."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddpm.seeds import stream_seed
from ddpm.shapes import Float

_LARGEST_BLOCK_SIZE = 16

_BLOCK_BYTES = 2**20
"""Of an image: the blocks of a thousand images then take a GiB."""


class ImageNoise:
    """Standard normal noise in which image i depends on the seed and on i alone.

    Each image has its first draw alone, since some samplers need no other, and the later ones in blocks of
    `block_size`, by one random kernel a block: on a CPU each draw for itself, on a GPU, where each kernel costs a
    launch, as many as `choose_block_size` says. Blocks are always drawn whole, and their size follows from the shape of
    an image, not from the batch: draw k of image i is the same in any batch, and however many draws are made.

    Args:
        seed: of the whole set, at least 0.
        image_numbers: which images of the set this batch holds, each at least 0.
        image_shape: (channels, height, width).
        device: where the noise is drawn; the streams of a CPU and of a GPU differ, and those of two kinds of GPU may.

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
        """The next noise of each image."""
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
    """Noise on the way from one image to another.

    Each draw is interpolated between the draws of the two images (see `slerp`). A sampler without noise of its own
    then turns the first noises into a sequence of images (Song, Meng & Ermon 2021, section 5.3; compare Ho et al. 2020,
    section 4.3); one with it takes the noise of each step from between, too. With either, fractions 0 and 1 are the two
    images.

    Args:
        seed: of the whole set, at least 0.
        ends: the numbers of the two images, which differ.
        fractions: how far on the way each image of the batch is, in [0, 1].
        image_shape: (channels, height, width).
        device: where the noise is drawn.

    Raises:
        ValueError: the ends are the same, or the seed or a number is negative.
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
            raise ValueError(f"the ends of an interpolation must be two images, got {ends[0]} twice")
        super().__init__(seed, ends, image_shape, device)
        self.fractions = fractions.to(self.device)

    def draw(self) -> Float[Tensor, "batch channels height width"]:
        """The next noise of each image."""
        first, last = super().draw()
        return slerp(first, last, self.fractions)


def choose_block_size(image_shape: tuple[int, int, int]) -> int:
    """Return how many draws of an image a GPU makes at a time: 16, fewer where they take more than a MiB."""
    bytes_per_draw = math.prod(image_shape) * torch.float32.itemsize
    return max(1, min(_LARGEST_BLOCK_SIZE, _BLOCK_BYTES // bytes_per_draw))


def slerp(
    first: Float[Tensor, "channels height width"],
    last: Float[Tensor, "channels height width"],
    fractions: Float[Tensor, " images"],
) -> Float[Tensor, "images channels height width"]:
    """Spherical linear interpolation, which keeps the norm that standard normal noise has.

    Song, Meng & Ermon 2021, appendix D.5, after Shoemake 1985: (sin((1 - a) theta) first + sin(a theta) last) /
    sin(theta), theta the angle between the two.

    Args:
        first: where the fraction is 0.
        last: where the fraction is 1; not parallel to the first.
        fractions: a, in [0, 1].
    """
    theta = torch.arccos((first * last).sum() / (first.norm() * last.norm()))
    weights_first, weights_last = (
        (torch.sin(share * theta) / torch.sin(theta)).reshape(-1, 1, 1, 1) for share in (1.0 - fractions, fractions)
    )
    return weights_first * first + weights_last * last


def require_eta(eta: float) -> None:
    """Refuse a share of noise outside [0, 1].

    Raises:
        ValueError: it is.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
