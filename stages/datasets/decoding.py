"""Decode an image and crop it to a square of the requested size."""

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from contract.errors import StageError
from stages.datasets.source import FORMATS, SourceImage

MARGIN = 2
"""A JPEG is decoded at the smallest scale of 1, 1/2, 1/4, 1/8 that leaves this many times the requested size."""

_JPEG_BLOCK = 8
_SIDEWAYS_ORIENTATIONS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class DamagedImageError(StageError):
    """An image cannot be decoded."""

    def __init__(self, image: SourceImage, reason: str) -> None:
        super().__init__(
            f"{image.name} cannot be decoded as an image ({reason}); remove or replace it, or set "
            "preprocess.skip_damaged: true to leave out damaged images"
        )
        self.image = image
        self.reason = reason


@dataclass(frozen=True)
class Picture:
    """A decoded image, upright, RGB."""

    pixels: Image.Image
    width: int
    """pixels of the original"""
    height: int
    reduction: float
    """side of a pixel of `pixels`, in pixels of the original"""


def decode(image: SourceImage, size: int) -> Picture:
    """Return the pixels of an image, upright, as RGB, with white in place of transparency.

    A JPEG much larger than `size` is decoded at a reduced scale (see `MARGIN`), where libjpeg transforms only a part of
    each block. This changes the prepared pixels slightly: photographs of 500×650 at 64 pixels by 0.2 grey levels on
    average and 11 at most; by less than 1 and 24 if no more than `MARGIN` times the size remains.

    Raises:
        DamagedImageError: the bytes are not an image, or are damaged.
    """
    if not isinstance(image.content, bytes):
        pixels = Image.fromarray(image.content)
        return Picture(pixels, pixels.width, pixels.height, 1.0)
    try:
        file = Image.open(io.BytesIO(image.content), formats=tuple(FORMATS))
        width, height = file.size
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
        reduction = _reduce_scale(file, orientation, size)
        upright = _convert_to_rgb(ImageOps.exif_transpose(file))
    except UnidentifiedImageError as error:  # its message holds an address in memory, which changes from run to run
        raise DamagedImageError(image, "not a format that Pillow knows") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DamagedImageError(image, str(error)) from error
    if orientation in _SIDEWAYS_ORIENTATIONS:
        width, height = height, width
    return Picture(upright, width, height, reduction)


def crop_centre(picture: Picture, size: int) -> NDArray[np.uint8]:
    """Return the central square, resized with Pillow's bicubic filter, which antialiases when it shrinks."""
    side = min(picture.width, picture.height)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    edges = [edge / picture.reduction for edge in (left, top, left + side, top + side)]
    outer = (math.floor(edges[0]), math.floor(edges[1]), math.ceil(edges[2]), math.ceil(edges[3]))
    # Cropped before resizing: with `box` alone the filter would read pixels outside of the square. In a reduced
    # picture the square may begin between two pixels, and `box` finds its exact edges.
    box = (edges[0] - outer[0], edges[1] - outer[1], edges[2] - outer[0], edges[3] - outer[1])
    square = picture.pixels.crop(outer)
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _reduce_scale(file: Image.Image, orientation: int, size: int) -> float:
    """Choose the scale at which an opened JPEG will be decoded, and return the factor; 1 for other formats."""
    width, height = file.size
    # If the width or height leaves a remainder, the last column or row of a reduced picture covers fewer pixels.
    # Turned over it would come first and shift all others.
    if orientation != 1 and (width % _JPEG_BLOCK or height % _JPEG_BLOCK):
        return 1.0
    draft = file.draft(None, (MARGIN * size, MARGIN * size))  # None for formats without reduced scales
    return width / draft[1][2] if draft else 1.0


def _convert_to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I;16":  # Pillow would clip it at 255 instead of scaling it
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
