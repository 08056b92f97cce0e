"""Remove from an encoded image what does not shape its pixels: Pillow refuses images whose metadata it cannot read."""

import zlib
from collections.abc import Iterator
from typing import Literal

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_TIFF: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}

_JPEG_END = (b"\xda", b"\xff", b"")  # markers behind which there are no metadata
_JPEG_KEPT = (b"\xe1", b"\xee")  # of the application markers: the one of EXIF, and Adobe's of the colours
_TIFF_KEPT = frozenset({
    254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 338, 339,
    347, 530, 531, 532,
})  # fmt: skip
"""Tags of size, layout, compression, colours and orientation."""


def strip_metadata(content: bytes) -> bytes:
    """Return a PNG, JPEG or TIFF with only what shapes its pixels and turns them; other formats unchanged."""
    if content.startswith(_PNG):
        return _PNG + b"".join(_find_png_chunks(content))
    if content.startswith(_JPEG):
        return _JPEG + b"".join(_find_jpeg_segments(content))
    if content[:4] in _TIFF:
        return _strip_tiff(content, _TIFF[content[:4]])
    return content


def _find_png_chunks(content: bytes) -> Iterator[bytes]:
    start = len(_PNG)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")  # length, name and checksum take 12 bytes
        name, checksum = content[start + 4 : start + 8], int.from_bytes(content[end - 4 : end], "big")
        is_exif = name == b"eXIf" and zlib.crc32(content[start + 4 : end - 4]) == checksum
        if name[:1].isupper() or name == b"tRNS" or is_exif:
            yield content[start:end]
        start = end


def _find_jpeg_segments(content: bytes) -> Iterator[bytes]:
    start = len(_JPEG)
    while content[start : start + 1] == b"\xff" and (marker := content[start + 1 : start + 2]) not in _JPEG_END:
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        if not b"\xe0" <= marker <= b"\xef" or marker in _JPEG_KEPT:
            yield content[start:end]
        start = end
    yield content[start:]


def _strip_tiff(content: bytes, order: Literal["little", "big"]) -> bytes:
    start = int.from_bytes(content[4:8], order)
    count = int.from_bytes(content[start : start + 2], order)
    tags = [content[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
    kept = [tag for tag in tags if int.from_bytes(tag[:2], order) in _TIFF_KEPT]
    directory = len(kept).to_bytes(2, order) + b"".join(kept) + bytes(4)  # no other directory follows
    return content[:start] + directory + content[start + len(directory) :]
