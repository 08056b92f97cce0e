"""The prepared dataset: one uint8 array, from which step k takes a batch that depends on (seed, k) alone."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.images import to_model_range
from ddpm.seeds import stream_seed
from ddpm.shapes import Float, Int64, UInt8

# Streams of one seed must not meet: epochs' permutations and steps' flips count from different places.
_FLIP_STREAM = 1 << 32


def load_images(path: Path) -> UInt8[Tensor, "images channels height width"]:
    """The array that preprocessing stored, memory-mapped.

    Args:
        path: a .npy file of uint8, shape (images, height, width, channels).

    Returns:
        A view of it in torch's order of axes (in memory it is channels-last).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    array = np.load(path, mmap_mode="c")
    if array.dtype != np.uint8 or array.ndim != 4:
        raise ValueError(f"{path} must hold uint8 of 4 axes, got {array.dtype} of shape {array.shape}")
    return torch.from_numpy(array).permute(0, 3, 1, 2)


class TrainingImages:
    """The images of a training run, batch by batch.

    The batches walk through one endless stream of epochs, each a new permutation of all images, so that every image is
    seen equally often whatever the batch size.

    Args:
        images: uint8, on the device that trains.
        batch_size: at least 1.
        seed: of the permutations and flips, at least 0.
        random_flips: mirror left-right with probability 1/2.

    Raises:
        ValueError: there are no images, or the batch size is below 1.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "images channels height width"],
        batch_size: int,
        seed: int,
        random_flips: bool = True,
    ) -> None:
        if len(images) == 0:
            raise ValueError("the dataset holds no images to train on")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.random_flips = random_flips
        self._epoch: int | None = None
        self._permutation = torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Float[Tensor, "batch channels height width"]:
        """The images of step `step` (0, 1, …), flipped at random, in [-1, 1]."""
        x_0 = to_model_range(self.images[self.indices(step).to(self.images.device)])
        if not self.random_flips:
            return x_0
        flips = torch.rand(self.batch_size, generator=_generator(self.seed, _FLIP_STREAM + step)) < 0.5
        return torch.where(flips.to(x_0.device)[:, None, None, None], x_0.flip(3), x_0)

    def indices(self, step: int) -> Int64[Tensor, " batch"]:
        """Which images step `step` holds."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        size = len(self.images)
        parts = []
        while start < stop:
            epoch, offset = divmod(start, size)
            part = self._permuted(epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return torch.cat(parts)

    def _permuted(self, epoch: int) -> Int64[Tensor, " images"]:
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = torch.randperm(len(self.images), generator=_generator(self.seed, epoch))
        return self._permutation


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(seed, number))
