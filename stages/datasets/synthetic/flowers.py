"""Draw flowers: a labelled image dataset of any size without a download.

A seed gives the same bytes on every machine and with every numpy version, so that a digest can pin the dataset. Two
rules ensure this:

- Random numbers are raw words of the Philox counter-based bit generator (Salmon et al. 2011), whose stream numpy
  guarantees (NEP 19); the distributions of `Generator` are not guaranteed. The top 53 bits of a word are a uniform.
- Arithmetic is float64 and elementwise, with operations that IEEE 754 rounds exactly: + - * / sqrt, comparisons, floor,
  abs, min, max. Sines, exponentials and powers differ in the last bit between math libraries and SIMD paths; sums and
  matrix products differ with the order of summation. Therefore petals are found by projection on axes that one constant
  rotation generates, directions come from the rational parametrisation of the circle, and colours from piecewise linear
  HSV. Edges are anti-aliased by a first-order signed distance, F / |grad F|, of polynomial outlines F.

Lengths are fractions of the image side, x to the right and y down. Fields have shape (N, S, S), one number per image
(N, 1, 1), colours a leading axis of 3.
"""

import numpy as np
from numpy.typing import NDArray

from stages.datasets.synthetic import colours, shapes
from stages.datasets.synthetic.colours import Array, column, mix, to_rgb
from stages.datasets.synthetic.draws import Draws, draw_labels
from stages.datasets.synthetic.shapes import Pose, coverage, smoothstep

_PIXELS_PER_CHUNK = 2**15  # a field of 256 KiB stays in the cache


def generate(
    num_images: int, image_size: int, seed: int, first: int = 0, variety: float = 1.0
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw flowers number first … first + num_images - 1 of a seed, and return their petal counts with them.

    Image i depends only on (seed, i, image_size, variety): any range can be drawn alone, in batches or in parallel.
    Another image_size shows the same flower. Each block of five images from a multiple of five has each class once.
    The ranges are those of `SyntheticParams`, which checks them; they are not checked again here.

    Args:
        num_images: N, at least 0.
        image_size: S, the side in pixels, 16 to 1024.
        seed: 0 to 2**64 - 1.
        first: number of the first image, at least 0.
        variety: 0 to 1; less of it makes flowers differ less in position, size, turn, tilt, leaves, petal lengths and
            colours, which is easier to learn.

    Returns:
        images: uint8 (N, S, S, 3), RGB in [0, 255].
        labels: int64 (N,), values of PETAL_COUNTS.
    """
    images = np.empty((num_images, image_size, image_size, 3), np.uint8)
    labels = draw_labels(seed, first, num_images)
    chunk = max(1, _PIXELS_PER_CHUNK // (image_size * image_size))
    for start in range(0, num_images, chunk):
        petals = labels[start : start + chunk]
        draws = Draws(seed, first + start, len(petals), variety)
        images[start : start + chunk] = _draw_images(petals, image_size, draws)
    return images, labels


def _draw_images(petals: NDArray[np.int64], image_size: int, draws: Draws) -> NDArray[np.uint8]:
    pixel = 1.0 / image_size
    centres: Array = (np.arange(image_size, dtype=np.float64) + 0.5) * pixel
    x, y = centres[None, None, :], centres[None, :, None]
    pose = draw_pose(draws)
    scene = draws.choose(len(colours.BACKGROUNDS))
    family = colours.FAMILIES_OF[scene, draws.choose(colours.FAMILIES_OF.shape[1])]
    canvas = _draw_background(draws, scene, x, y)
    canvas = _draw_greenery(draws, canvas, pose, x, y, pixel)
    flower_x, flower_y = shapes.flower_coordinates(pose, x, y)
    canvas = _draw_petals(draws, canvas, petals, family, pose, flower_x, flower_y, pixel)
    canvas = _draw_disc(draws, canvas, family, pose, flower_x, flower_y, pixel)
    return np.floor(np.clip(np.moveaxis(canvas, 0, -1), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def draw_pose(draws: Draws) -> Pose:
    """Draw where each flower is and how it faces."""
    x, y, radius = draws.vary(0.45, 0.55), draws.vary(0.43, 0.51), draws.vary(0.35, 0.44)
    return Pose(x, y, radius, draws.direction(), draws.direction(), draws.vary(0.82, 1.0))


def _draw_background(draws: Draws, scene: NDArray[np.int64], x: Array, y: Array) -> Array:
    light = draws.uniform(0.85, 1.1)
    above, below = (np.moveaxis(colours.BACKGROUNDS[scene, end], -1, 0)[..., None, None] * light for end in (0, 1))
    tint = np.stack([draws.uniform(-0.04, 0.04) for _ in range(3)])
    middle, slope, softness = draws.uniform(0.4, 0.75), draws.uniform(-0.3, 0.3), draws.uniform(0.5, 1.2)
    depth = smoothstep((y + slope * (x - 0.5) - middle) / softness + 0.5)
    glow_x, glow_y = x - draws.uniform(), y - draws.uniform(0.0, 0.5)
    glow = smoothstep(1.0 - 2.0 * (glow_x * glow_x + glow_y * glow_y)) * draws.uniform(0.0, 0.14)
    return mix(above, below, depth) + tint + glow


def _draw_greenery(draws: Draws, canvas: Array, pose: Pose, x: Array, y: Array, pixel: float) -> Array:
    green = to_rgb(draws.uniform(0.25, 0.36), draws.uniform(0.5, 0.75), draws.uniform(0.42, 0.66))
    foot, present = draws.vary(0.35, 0.65), draws.chance(0.8)
    fall = np.maximum(y - pose.centre_y, 0.0) / (1.0 - pose.centre_y)
    side = x - pose.centre_x - (foot - pose.centre_x) * fall * fall
    stem = coverage(draws.uniform(0.018, 0.028) - np.abs(side), pixel) * (y > pose.centre_y) * present
    canvas = mix(canvas, green * (0.85 - 6.0 * side), stem)
    for sign in (-1.0, 1.0):
        rise, length = draws.vary(0.15, 0.9), draws.vary(0.34, 0.5)
        norm = np.sqrt(1.0 + rise * rise)
        from_x, from_y = sign * (x - foot), draws.vary(0.95, 1.02) - y
        along, across = (from_x + rise * from_y) / norm, (from_y - rise * from_x) / norm
        width = length * draws.vary(0.18, 0.27)
        inside = coverage(shapes.petal_distance(along, across, length, width, 0.75, -0.1, 0.0), pixel)
        shade = 0.85 + 0.22 * np.clip(across / width, -1.0, 1.0) + 0.2 * smoothstep(1.0 - np.abs(across) / 0.025)
        canvas = mix(canvas, green * shade, inside * draws.chance(0.75) * present)
    return canvas


def _draw_petals(
    draws: Draws,
    canvas: Array,
    petals: NDArray[np.int64],
    family: NDArray[np.int64],
    pose: Pose,
    x: Array,
    y: Array,
    pixel: float,
) -> Array:
    axes = shapes.petal_axes(petals, pose.turn)
    along, across, vigour = shapes.nearest_petal(x, y, axes, [draws.vary(-1.0, 1.0) for _ in range(shapes.MAX_PETALS)])
    spread = shapes.sector_slope(petals)  # half the width of a petal's sector at distance 1 from the centre
    length = pose.radius * (1.0 + 0.04 * vigour)
    width = pose.radius * np.minimum(spread * draws.vary(0.34, 0.45), draws.vary(0.3, 0.38))
    point = draws.vary(0.0, 0.8)
    notch = draws.uniform(0.05, 0.13) * draws.chance(0.3) * (point < 0.4)
    distance = shapes.petal_distance(along, across, length, width, point, draws.vary(0.0, 0.35), notch)

    canvas = canvas * (1.0 - draws.uniform(0.25, 0.45) * _shade_around_petals(along / length, across / width))
    reach = np.clip(along / length, 0.0, 1.0)
    bend = np.clip(across / width, -1.0, 1.0)
    crease = np.abs(across) / (spread * np.maximum(along, pixel))
    colour = _colour_petals(draws, family, reach) * _light_petals(draws, vigour, reach, bend, crease)
    return mix(canvas, colour, coverage(distance, pixel))


def _shade_around_petals(reach: Array, bend: Array) -> Array:
    # An ellipse: far from the outline its first-order distance is wrong and would draw rays.
    middle = 2.0 * reach - 1.0
    near = np.clip(2.4 - 1.4 * np.sqrt(middle * middle + bend * bend), 0.0, 1.0)
    return near * near


def _light_petals(draws: Draws, vigour: Array, reach: Array, bend: Array, crease: Array) -> Array:
    light = (0.72 + 0.3 * smoothstep(1.6 * reach)) * (1.0 - 0.3 * smoothstep(3.0 * crease - 2.0))
    light = light * (1.0 + 0.07 * vigour)
    light = light * (1.0 - draws.uniform(0.05, 0.25) * bend * bend + draws.uniform(-0.1, 0.1) * bend)
    vein = smoothstep(1.0 - 3.5 * np.abs(bend)) * (1.0 - reach)
    return light * (1.0 - draws.uniform(0.0, 0.3) * vein)


def _colour_petals(draws: Draws, family: NDArray[np.int64], reach: Array) -> Array:
    hue, saturation, value = (
        draws.uniform(column(colours.PETALS, family, 2 * i), column(colours.PETALS, family, 2 * i + 1))
        for i in range(3)
    )
    shift, fade, shade = draws.uniform(-0.08, 0.05), draws.uniform(0.3, 1.0), draws.uniform(0.8, 1.0)
    first, second = to_rgb(hue, saturation, value), to_rgb(hue + shift, saturation * fade, value * shade)
    # The second colour lies at the tips or, as an eye, around the disc; some flowers have only one colour.
    eye = draws.chance(0.5)
    outer = smoothstep((reach - draws.uniform(0.35, 0.6)) / 0.4 + 0.25)
    return mix(first, second, draws.chance(0.65 * draws.variety) * (eye + (1.0 - 2.0 * eye) * outer))


def _draw_disc(
    draws: Draws, canvas: Array, family: NDArray[np.int64], pose: Pose, x: Array, y: Array, pixel: float
) -> Array:
    kind = colours.DISCS_OF[family, draws.choose(colours.DISCS_OF.shape[1])]
    colour = to_rgb(*(column(colours.DISCS, kind, i) + draws.uniform(-0.03, 0.03) for i in range(3)))
    radius = pose.radius * draws.uniform(0.2, 0.3)
    from_centre = np.sqrt(x * x + y * y)
    reach = from_centre / radius
    # Round like a button, lit from the upper left, darker or lighter in the middle.
    light = 1.08 - 0.4 * reach * reach - 0.25 * (x + y) / radius
    heart = smoothstep(2.0 - reach / draws.uniform(0.25, 0.4)) * draws.uniform(-0.4, 0.25)
    shadow = np.clip(1.0 - (from_centre - radius) / (0.35 * radius), 0.0, 1.0)
    canvas = canvas * (1.0 - 0.35 * shadow * shadow)
    return mix(canvas, colour * (light + heart), coverage(radius - from_centre, pixel))
