"""The prepared dataset: one uint8 array, from which step k takes a batch that depends on (seed, k) alone."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm.checks import require_indices, require_pixels
from ddpm.devices import fits_on
from ddpm.images import to_model_range
from ddpm.seeds import stream_seed
from ddpm.shapes import Float, Int64, UInt8

# Streams of one seed must not meet: epochs' permutations and steps' flips count from different places.
_FLIP_STREAM = 1 << 32


def load_images(path: Path) -> UInt8[Tensor, "images channels height width"]:
    """Memory-map the array that preprocessing stored.

    Args:
        path: a .npy file of uint8, shape (images, height, width, channels).

    Returns:
        uint8 pixels, shape (images, channels, height, width), channels-last in memory.

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
    seen equally often whatever the batch size. The images live on the device where they fit, and no loader is needed;
    otherwise they stay where they are, such as in a memory-mapped file, and the next batch is fetched while the device
    works on this one. Both ways give the same batches.

    Args:
        images: uint8, on the CPU or on the device.
        batch_size: at least 1.
        seed: seed of the permutations and flips, at least 0.
        random_flips: mirror left-right with probability 1/2.
        device: device of the batches; None means that of the images.
        resident: whether to move the images to the device; None decides by its free memory.
        positions: indices of the images to train on; None takes all.
        labels: the class of each image, for a network that knows classes.

    Raises:
        ValueError: the images are no bytes or there are none, a position or label lies outside its range, the batch
            size is below 1, or there is not one label per image.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "images channels height width"],
        batch_size: int,
        seed: int,
        random_flips: bool = True,
        device: torch.device | None = None,
        resident: bool | None = None,
        positions: Int64[Tensor, " images_used"] | None = None,
        labels: Int64[Tensor, " labels"] | None = None,
    ) -> None:
        require_pixels(images, "images")
        if positions is not None:
            require_indices(positions, "positions", len(images))
        self.positions = torch.arange(len(images)) if positions is None else positions
        if len(self.positions) == 0:
            raise ValueError("the dataset holds no images to train on")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"each image needs a label: {len(images)} images, got {len(labels)} labels")
        if labels is not None:
            require_indices(labels, "labels")
        # Labels are small; keep them on the CPU, where the indices are drawn.
        self.labels = None if labels is None else labels.cpu()[self.positions]
        self.device = images.device if device is None else device
        num_bytes = len(self.positions) * images[0].numel()
        self.is_resident = fits_on(self.device, num_bytes) if resident is None else resident
        if self.is_resident and images.device != self.device:
            images = images[self.positions].to(self.device)
            self.positions = torch.arange(len(images))
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.random_flips = random_flips
        self._epoch: int | None = None
        self._permutation = torch.empty(0, dtype=torch.int64)
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="fetch-images")
        self._fetched: tuple[tuple[int, slice], Future[Tensor]] | None = None

    def __len__(self) -> int:
        """Return the number of images to train on."""
        return len(self.positions)

    def batch(self, step: int, part: slice = slice(None)) -> Float[Tensor, "batch channels height width"]:
        """Return the images of step `step` (0, 1, …) in [-1, 1], flipped at random.

        Args:
            step: at least 0.
            part: the part of the batch to return, for one of several processes.
        """
        pixels = self._fetch(self.indices(step)[part]) if self.is_resident else self._streamed(step, part)
        x_0 = to_model_range(pixels)
        if not self.random_flips:
            return x_0
        flips = torch.rand(self.batch_size, generator=_generator(self.seed, _FLIP_STREAM + step))[part] < 0.5
        return torch.where(flips.to(self.device, non_blocking=True)[:, None, None, None], x_0.flip(3), x_0)

    def batch_labels(self, step: int, part: slice = slice(None)) -> Int64[Tensor, " batch"] | None:
        """Return the labels of the images of step `step`, on the CPU; None if the images have none.

        Args:
            step: at least 0.
            part: the part of the batch to return, for one of several processes.
        """
        return None if self.labels is None else self.labels[self.indices(step)[part]]

    def indices(self, step: int) -> Int64[Tensor, " batch"]:
        """Return the indices, among the images trained on, of those in step `step`."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        size = len(self)
        parts = []
        while start < stop:
            epoch, offset = divmod(start, size)
            part = self._permuted(epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return torch.cat(parts)

    def _streamed(self, step: int, part: slice) -> UInt8[Tensor, "batch channels height width"]:
        request, fetched = (step, part), self._fetched
        pixels = (
            fetched[1].result()
            if fetched is not None and fetched[0] == request
            else self._fetch(self.indices(step)[part])
        )
        # Draw the indices here, not in the thread: drawing them replaces the cached permutation.
        ahead = self._fetcher.submit(self._fetch, self.indices(step + 1)[part])
        self._fetched = (step + 1, part), ahead
        return pixels.to(self.device, non_blocking=True)

    def _fetch(self, indices: Int64[Tensor, " batch"]) -> UInt8[Tensor, "batch channels height width"]:
        pixels = self.images[self.positions[indices].to(self.images.device, non_blocking=True)]
        # From pinned memory the copy to a GPU runs beside the GPU's work.
        return pixels.pin_memory() if pixels.device.type != self.device.type == "cuda" else pixels

    def _permuted(self, epoch: int) -> Int64[Tensor, " images"]:
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = torch.randperm(len(self), generator=_generator(self.seed, epoch))
        return self._permutation


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(seed, number))
