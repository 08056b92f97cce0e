"""Random numbers that a seed makes the same on every machine; the module `flowers` explains how."""

import numpy as np
from numpy.typing import NDArray

from stages.datasets.synthetic.colours import Array

PETAL_COUNTS = (4, 5, 6, 7, 8)

_WORDS_PER_IMAGE = 96  # whole Philox blocks of 4 words: every image starts at its own counter
_LABEL_COUNTER = 2**192  # far beyond the counters of any image


class Draws:
    """Random numbers for images first … first + num_images - 1, one column at a time."""

    def __init__(self, seed: int, first: int, num_images: int, variety: float = 1.0) -> None:
        self.variety = variety
        bits = np.random.Philox(key=seed, counter=first * _WORDS_PER_IMAGE // 4)
        words = bits.random_raw(num_images * _WORDS_PER_IMAGE).reshape(num_images, _WORDS_PER_IMAGE)
        self._uniforms = (words >> np.uint64(11)).astype(np.float64) / 2.0**53
        self._next = 0

    def uniform(self, low: float | Array = 0.0, high: float | Array = 1.0) -> Array:
        unit = self._uniforms[:, self._next, None, None]
        self._next += 1
        return low + (high - low) * unit

    def vary(self, low: float, high: float) -> Array:
        # Variety shrinks the range around its middle.
        middle, reach = (low + high) / 2.0, (high - low) / 2.0 * self.variety
        return self.uniform(middle - reach, middle + reach)

    def chance(self, probability: float) -> Array:
        return (self.uniform() < probability).astype(np.float64)

    def choose(self, length: int) -> NDArray[np.int64]:
        # Variety limits the choice to the first entries of a table, at least three.
        kept = max(3, int(length * self.variety + 0.5))
        entries: NDArray[np.int64] = np.floor(self.uniform() * kept).astype(np.int64)[:, 0, 0]
        return entries

    def direction(self) -> tuple[Array, Array]:
        # Upwards, or up to a right angle to either side: with four petals or more, that covers all turns.
        t = self.vary(-1.0, 1.0)
        return 2.0 * t / (1.0 + t * t), -(1.0 - t * t) / (1.0 + t * t)


def draw_labels(seed: int, first: int, num_images: int) -> NDArray[np.int64]:
    """Return the petal counts of images first … first + num_images - 1: each class once in a block of five."""
    # Shuffled within blocks: with class i % 5, every fifth image would always show the same class.
    first_block = first // 5
    num_blocks = (first + num_images + 4) // 5 - first_block
    bits = np.random.Philox(key=seed, counter=_LABEL_COUNTER + 2 * first_block)
    order = np.argsort(bits.random_raw(num_blocks * 8).reshape(num_blocks, 8)[:, :5], axis=1, kind="stable")
    skipped = first - 5 * first_block
    return np.array(PETAL_COUNTS, np.int64)[order].reshape(-1)[skipped : skipped + num_images]
