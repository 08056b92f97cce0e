"""Dataset of drawn flowers; the class is the number of petals."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from contract.class_names import CLASS_NAMES
from contract.sections import DownloadParams
from stages.datasets.source import SourceImage
from stages.datasets.synthetic.flowers import generate

_CHUNK = 500


class SyntheticFlowers:
    """Drawn flowers, stored as raw arrays: compressed images would differ between versions of the compressor."""

    is_immutable = True

    def fetch(self, params: DownloadParams, folder: Path, previous: Path) -> None:  # noqa: ARG002 (drawing is quick)
        drawing = params.synthetic
        shape = (drawing.num_images, drawing.image_size, drawing.image_size, 3)
        images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        petals = np.empty(drawing.num_images, dtype=np.int64)
        for first in range(0, drawing.num_images, _CHUNK):
            part = slice(first, min(first + _CHUNK, drawing.num_images))
            images[part], petals[part] = generate(
                part.stop - first, drawing.image_size, drawing.seed, first, drawing.variety
            )
        images.flush()
        np.save(folder / "petals.npy", petals)

    def count(self, folder: Path) -> int:
        return len(np.load(folder / "petals.npy", mmap_mode="r"))

    def images(self, folder: Path) -> Iterator[SourceImage]:
        images = np.load(folder / "images.npy", mmap_mode="r")
        petals = np.load(folder / "petals.npy")
        for index, (image, count) in enumerate(zip(images, petals, strict=True)):
            number, class_name = index + 1, CLASS_NAMES["synthetic_flowers"][int(count)]
            yield SourceImage(number, f"image {number}", np.array(image), int(count), class_name, None)
