"""Geometry of drawn flowers, in float64 arithmetic that gives the same bits on every machine.

All operations are elementwise and rounded exactly by IEEE 754: + - * / sqrt, comparisons, floor, abs, min, max; the
module `flowers` explains why. Arrays broadcast: fields of pixels (N, S, S), one number per image (N, 1, 1), colours
with a leading axis of 3. Lengths are fractions of the image side.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.synthetic.colours import Array

# cos(2 pi / k), sin(2 pi / k), tan(pi / k), as literals: parsing a decimal is exactly rounded, computing it is not.
_TURNS = {
    4: (0.0, 1.0, 1.0),
    5: (0.30901699437494745, 0.9510565162951535, 0.7265425280053609),
    6: (0.5, 0.8660254037844386, 0.5773502691896257),
    7: (0.6234898018587336, 0.7818314824680298, 0.48157461880752864),
    8: (0.7071067811865476, 0.7071067811865476, 0.41421356237309503),
}
MAX_PETALS = 8


class Pose(NamedTuple):
    """Position and direction of each flower, arrays of shape (N, 1, 1)."""

    centre_x: Array
    centre_y: Array
    radius: Array
    turn: tuple[Array, Array]  # direction of the first petal
    tilt_axis: tuple[Array, Array]
    tilt: Array  # extent of the flower along tilt_axis; 1 is seen from the front


def flower_coordinates(pose: Pose, x: Array, y: Array) -> tuple[Array, Array]:
    """Return (x, y) relative to the flower's centre, with its tilt undone."""
    x, y = x - pose.centre_x, y - pose.centre_y
    axis_x, axis_y = pose.tilt_axis
    stretch = (1.0 / pose.tilt - 1.0) * (x * axis_x + y * axis_y)
    return x + stretch * axis_x, y + stretch * axis_y


def sector_slope(petals: NDArray[np.int64]) -> Array:
    """Return tan(pi / k), shape (N, 1, 1): half the width of a petal's sector at distance 1 from the centre."""
    return np.array([_TURNS[k][2] for k in petals.tolist()])[:, None, None]


def petal_axes(petals: NDArray[np.int64], turn: tuple[Array, Array]) -> list[tuple[Array, Array]]:
    """Return MAX_PETALS unit vectors (x, y): `turn`, then each turned by another 2 pi / k; zero beyond petal k."""
    cos, sin = (np.array([_TURNS[k][i] for k in petals.tolist()])[:, None, None] for i in (0, 1))
    axes = []
    x, y = turn
    for number in range(MAX_PETALS):
        exists = number < petals[:, None, None]
        axes.append((x * exists, y * exists))
        x, y = cos * x - sin * y, sin * x + cos * y
    return axes


def nearest_petal(
    x: Array, y: Array, axes: list[tuple[Array, Array]], vigour: list[Array]
) -> tuple[Array, Array, Array]:
    """Return each pixel's place along and across the petal on whose axis it projects farthest, and that petal's vigour.

    (x, y) is relative to the flower's centre, and y runs down, so that `across` grows clockwise. The axes are those of
    `petal_axes`; vigour is a number per petal, shape (N, 1, 1).
    """
    along = np.full(np.broadcast_shapes(x.shape, y.shape), -1.0)
    across, chosen = np.zeros_like(along), np.zeros_like(along)
    for (axis_x, axis_y), strength in zip(axes, vigour, strict=True):
        projection = x * axis_x + y * axis_y
        nearer = projection > along
        np.copyto(along, projection, where=nearer)
        np.copyto(across, y * axis_x - x * axis_y, where=nearer)
        np.copyto(chosen, strength, where=nearer)
    return along, across, chosen


def smoothstep(t: Array) -> Array:
    """Return 0 for t <= 0, 1 for t >= 1, and the cubic 3 t^2 - 2 t^3 between."""
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def coverage(distance: Array, pixel: float) -> Array:
    """Return the share of a pixel inside an outline, from its centre's signed distance: an edge 1.5 pixels wide."""
    return smoothstep(distance / (1.5 * pixel) + 0.5)


def petal_distance(
    along: Array,
    across: Array,
    length: Array,
    width: Array,
    point: Array | float,
    skew: Array | float,
    notch: Array | float,
) -> Array:
    """Return the signed distance to a petal's outline, positive inside: F / |grad F| of F = width^2 g(s) - across^2.

    g(s) = e (1 - point + point max(e, 0)) (1 + skew (2 s - 1))^2 with e = 4 s (1 - s) and s = along / length runs from
    an ellipse (point = 0) to a pointed lens (1); skew moves the widest place outwards; notch indents the tip.
    """
    t = along / length
    dent = np.maximum(1.0 - np.abs(across) / (0.7 * width), 0.0)
    s = t + notch * t * t * dent * dent
    s_along = (1.0 + 2.0 * notch * t * dent * dent) / length
    s_across = 2.0 * notch * t * t * dent / (0.7 * width)
    e = 4.0 * s * (1.0 - s)
    swell = 1.0 + skew * (2.0 * s - 1.0)
    base = e * (1.0 - point + point * np.maximum(e, 0.0))
    base_s = (4.0 - 8.0 * s) * (1.0 - point + 2.0 * point * np.maximum(e, 0.0))
    g_s = width * width * (base_s * swell * swell + 4.0 * skew * base * swell)
    f_along, f_across = g_s * s_along, 2.0 * np.abs(across) + g_s * s_across
    f = width * width * base * swell * swell - across * across
    return f / np.sqrt(f_along * f_along + f_across * f_across + 1e-6)
