"""Noise for sampling, one independent stream an image, so that a batch's size never changes its images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm.seeds import stream_seed
from ddpm.shapes import Float


class ImageNoise:
    """Standard normal noise in which image i depends on the seed and on i alone.

    Args:
        seed: of the whole set, at least 0.
        image_numbers: which images of the set this batch holds, each at least 0.
        image_shape: (channels, height, width).
        device: where the noise is drawn; the streams of a CPU and of a GPU differ.

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

    def draw(self) -> Float[Tensor, "batch channels height width"]:
        """The next noise of each image."""
        draws = [torch.randn(self.image_shape, generator=g, device=self.device) for g in self._generators]
        return torch.stack(draws)


def require_eta(eta: float) -> None:
    """Refuse a share of noise outside [0, 1].

    Raises:
        ValueError: it is.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
