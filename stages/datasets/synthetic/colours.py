"""Colours of drawn flowers: families that match, and arithmetic that is exact on every machine.

Colours are RGB in [0, 1] with a leading axis of 3; the module `flowers` says which operations are allowed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Petal families: hue, saturation and value, each as (low, high). Hues wrap around; none is the green of leaves.
_PINK, _RED, _ORANGE, _YELLOW, _VIOLET, _BLUE, _WHITE = range(7)
PETALS = np.array([
    [0.88, 0.96, 0.35, 0.65, 0.92, 1.00],
    [0.96, 1.01, 0.75, 0.92, 0.80, 0.96],
    [0.04, 0.09, 0.75, 0.95, 0.94, 1.00],
    [0.12, 0.155, 0.60, 0.90, 0.95, 1.00],
    [0.73, 0.82, 0.40, 0.68, 0.75, 0.94],
    [0.58, 0.66, 0.45, 0.72, 0.85, 0.98],
    [0.00, 1.00, 0.01, 0.09, 0.95, 1.00],
])  # fmt: skip
# Disc families, HSV: yellow, orange, brown, plum, lime.
DISCS = np.array([[0.13, 0.85, 0.97], [0.085, 0.90, 0.93], [0.06, 0.65, 0.36], [0.86, 0.55, 0.30], [0.20, 0.60, 0.80]])
DISCS_OF = np.array([[0, 0, 3, 4], [0, 0, 2, 3], [0, 2, 2, 3], [1, 2, 2, 4], [0, 0, 1, 4], [0, 0, 1, 4], [0, 0, 1, 2]])
# Backgrounds: RGB above and RGB below; FAMILIES_OF lists the petal families that contrast with each.
BACKGROUNDS = np.array([
    [[0.44, 0.66, 0.90], [0.24, 0.46, 0.20]],  # meadow
    [[0.22, 0.42, 0.24], [0.05, 0.15, 0.08]],  # foliage
    [[0.20, 0.18, 0.40], [0.04, 0.05, 0.13]],  # dusk
    [[0.30, 0.54, 0.86], [0.62, 0.80, 0.94]],  # sky
    [[0.36, 0.24, 0.22], [0.11, 0.06, 0.08]],  # earth
    [[0.94, 0.90, 0.80], [0.78, 0.74, 0.62]],  # linen
])  # fmt: skip
FAMILIES_OF = np.array([
    [_PINK, _RED, _YELLOW, _ORANGE, _WHITE, _RED],
    [_WHITE, _RED, _VIOLET, _YELLOW, _BLUE, _PINK],
    [_ORANGE, _YELLOW, _BLUE, _PINK, _WHITE, _PINK],
    [_PINK, _RED, _ORANGE, _YELLOW, _RED, _PINK],
    [_PINK, _ORANGE, _YELLOW, _VIOLET, _BLUE, _WHITE],
    [_RED, _VIOLET, _BLUE, _VIOLET, _RED, _BLUE],
])  # fmt: skip


def mix(below: Array, above: Array, amount: Array) -> Array:
    """Lay `above` over `below`, opaque where `amount` is 1."""
    return below + amount * (above - below)


def to_rgb(hue: Array, saturation: Array, value: Array) -> Array:
    """Convert HSV to RGB, piecewise linear: hue of any sign in turns, saturation and value in [0, 1]."""
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = offset + 6.0 * (hue - np.floor(hue))
        k = k - 6.0 * np.floor(k / 6.0)
        channels.append(value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0))
    return np.stack(channels)


def column(table: NDArray[Any], rows: NDArray[np.int64], number: int) -> Array:
    """Return one entry of a table per image, shape (N, 1, 1)."""
    chosen: Array = table[rows, number][:, None, None]
    return chosen
