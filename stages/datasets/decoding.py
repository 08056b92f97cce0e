"""Decode an image and crop it to a square of the requested size."""

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from contract.errors import StageError, name_few
from stages.datasets.metadata import strip_metadata
from stages.datasets.source import FORMATS, SourceImage

MARGIN = 2
"""A JPEG is decoded at the smallest scale of 1, 1/2, 1/4, 1/8 that leaves this many times the requested size."""

_JPEG_BLOCK = 8
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS_TURNS = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))  # which swap width and height


class UndecodableImageError(StageError):
    """An image cannot be decoded."""

    def __init__(self, image: SourceImage, reason: str, advice: str = "remove or replace it") -> None:
        super().__init__(
            f"{name_few([image.name])} cannot be decoded as an image ({reason}); {advice}, or set "
            "preprocess.skip_damaged: true to leave out such images"
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

    Metadata that cannot be read are ignored: the image is then taken as if it had none.

    Raises:
        UndecodableImageError: the bytes are not an image, or are damaged, or exceed a limit.
    """
    if not isinstance(image.content, bytes):
        pixels = Image.fromarray(image.content)
        return Picture(pixels, pixels.width, pixels.height, 1.0)
    try:
        try:
            return _decode_file(image.content, size)
        except Exception:
            bare = strip_metadata(image.content)
            if bare == image.content:
                raise
            return _decode_file(bare, size)
    except UnidentifiedImageError as error:  # its message holds an address in memory, which changes from run to run
        raise UndecodableImageError(image, f"in none of the formats {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise UndecodableImageError(image, str(error) or "it takes too much memory", "make it smaller") from error
    except _UnknownRangeError as error:
        raise UndecodableImageError(image, str(error), "convert it to 8 or 16 bits") from error
    except Exception as error:  # decoders raise errors of any type
        raise UndecodableImageError(image, str(error) or type(error).__name__) from error


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


class _UnknownRangeError(Exception):
    """Which number is white is not known."""


def _decode_file(content: bytes, size: int) -> Picture:
    file = Image.open(io.BytesIO(content), formats=tuple(FORMATS))
    width, height = file.size
    reduction = _reduce_scale(file, size) if isinstance(file, JpegImageFile) else 1.0
    file.load()
    turn = _read_turn(file)
    upright = _convert_to_rgb(file if turn is None else file.transpose(turn))
    if reduction == 1.0:
        width, height = upright.size
    elif turn in _SIDEWAYS_TURNS:
        width, height = height, width
    return Picture(upright, width, height, reduction)


def _read_turn(file: Image.Image) -> Image.Transpose | None:
    """Return how the picture is turned upright; None if it is, or if its metadata cannot be read."""
    try:
        return _TURNS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of any type
        return None


def _reduce_scale(file: JpegImageFile, size: int) -> float:
    """Choose the scale at which an opened JPEG will be decoded, and return the factor."""
    width, height = file.size
    # If the width or height leaves a remainder, the last column or row of a reduced picture covers fewer pixels.
    # Turned over it would come first and shift all others.
    if _read_turn(file) is not None and (width % _JPEG_BLOCK or height % _JPEG_BLOCK):
        return 1.0
    draft = file.draft(None, (MARGIN * size, MARGIN * size))
    return width / draft[1][2] if draft else 1.0


def _convert_to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
        # Pillow would clip it at 255 instead of scaling it. It scales the numbers of a PPM to 16 bits.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in {"I", "F"}:
        raise _UnknownRangeError("its numbers have 32 bits, and no largest one is stated")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
