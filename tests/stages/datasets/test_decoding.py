"""Images decoded upright as RGB, large JPEGs at a reduced scale, and cropped to a square."""

import io
import random
import struct
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.preprocess import jpeg, photograph
from stages.datasets import DATASETS, decoding
from stages.datasets.decoding import Picture, UndecodableImageError, crop_centre, decode
from stages.datasets.preparation import prepare
from stages.datasets.source import SourceImage
from tests.stages.datasets.files import encode

REAL = Path(__file__).parents[3] / ".." / "shared" / "data" / "flowers-102"
ORIENTATION = 0x0112


def make_source(content):
    return SourceImage(1, "a picture", content, 0, "", None)


def decode_whole(image, kind="PNG", **options):
    return np.asarray(decode(make_source(encode(image, kind, **options)), size=10_000).pixels)


def encode_jpeg(pixels, mode="RGB", orientation=None, kind="JPEG", **options):
    exif = Image.Exif()
    if orientation:
        exif[ORIENTATION] = orientation
    return encode(Image.fromarray(pixels).convert(mode), kind, exif=exif, **options)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(20, 20, (0, 0, 20, 20)), (30, 20, (5, 0, 25, 20)), (20, 31, (0, 5, 20, 25)), (21, 20, (0, 0, 20, 20))],
)
@pytest.mark.parametrize("size", [8, 20, 40])
def test_the_central_square_is_resized_as_pillow_does(width, height, box, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    expected = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crop_centre(Picture(image, width, height, 1.0), size), np.asarray(expected))


def test_a_photograph_is_turned_upright():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was turned: rotate by 90° clockwise to show it
    upright = decode_whole(Image.fromarray(pixels), exif=exif)
    assert upright.shape == (6, 4, 3)
    assert upright[0, 3].tolist() == [255, 255, 255] and upright.sum() == 3 * 255


def make_palette_image():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    return image


GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
SHADES = (np.arange(24, dtype=np.uint16) * 2730).reshape(4, 6)
CLEAR = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.fromarray(GREY), {}, np.repeat(GREY[..., None], 3, axis=2)),
        (Image.fromarray(SHADES), {}, np.repeat((SHADES // 256).astype(np.uint8)[..., None], 3, axis=2)),
        (Image.fromarray(CLEAR), {}, [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]),
        (Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8), "LA"), {}, [[[100] * 3, [255] * 3]]),
        (make_palette_image(), {}, [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]),
        (make_palette_image(), {"transparency": 1}, [[[10, 20, 30], [255] * 3, [70, 80, 90]]]),
    ],
    ids=["grey", "grey of 16 bits", "transparent", "transparent grey", "palette", "transparent palette"],
)
def test_every_mode_becomes_rgb_on_white(image, options, expected):
    np.testing.assert_array_equal(decode_whole(image, **options), expected)


def test_printing_colours_become_screen_colours():
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 0] = 255  # all cyan ink
    red, green, blue = decode_whole(Image.fromarray(pixels, "CMYK"), "JPEG", quality=95).mean(axis=(0, 1))
    assert red < 5 and green > 250 and blue > 250


PICTURE = Image.fromarray(photograph(40, 24, 0))


def put_segment(number, payload):
    """A small JPEG with an application segment."""
    content, segment = encode(PICTURE, "JPEG"), bytes([255, 0xE0 + number]) + (len(payload) + 2).to_bytes(2, "big")
    return content[:2] + segment + payload + content[2:]


def put_chunk(name, payload, is_sound=True, is_last=False):
    """A small PNG with a chunk before its pixels, or behind them."""
    content = encode(PICTURE)
    checksum = (zlib.crc32(name + payload) ^ (not is_sound)).to_bytes(4, "big")
    place = len(content) - 12 if is_last else 33
    return content[:place] + len(payload).to_bytes(4, "big") + name + payload + checksum + content[place:]


def make_broken_exif(orientation=6):
    """Orientation, and a width that is stated as text."""
    tags = (2).to_bytes(2, "little") + struct.pack("<HHIIHHII", 0x100, 2, 1, 65, ORIENTATION, 3, 1, orientation)
    return b"II*\0\x08\0\0\0" + tags + bytes(4)


def put_broken_tag():
    """A TIFF whose camera is named beyond the end of the file, by the first of its tags."""
    content = bytearray(encode(PICTURE, "TIFF", tiffinfo={271: "a camera of some name"}))
    at = content.index(struct.pack("<HH", 271, 2)) + 8
    content[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(content)


PHOTOSHOP = put_segment(13, b"Photoshop 3.0\x008BIM\x03\xed")
LONG = b"a\0\0" + zlib.compress(bytes(3 * 2**20))  # longer than Pillow takes


UNREADABLE = {
    "EXIF without an offset": put_segment(1, b"Exif\0\0II*\0"),
    "EXIF of no format": put_segment(1, b"Exif\0\0Canon"),
    "JFIF": put_segment(0, b"JFIF"),
    "Photoshop": PHOTOSHOP,
    "MPF": put_segment(2, b"MPF\0II*\0"),
    "ICC": put_segment(2, b"ICC_PROFILE\0\x09\x01"),
    "eXIf without an offset": put_chunk(b"eXIf", b"II*\0"),
    "eXIf of no format": put_chunk(b"eXIf", b"Canon"),
    "checksum": put_chunk(b"tEXt", b"a\0b", is_sound=False),
    "pHYs": put_chunk(b"pHYs", b""),
    "gAMA": put_chunk(b"gAMA", b""),
    "acTL": put_chunk(b"acTL", b""),
    "long profile": put_chunk(b"iCCP", LONG),
    "long text": put_chunk(b"zTXt", LONG),
    "long text at the end": put_chunk(b"zTXt", LONG, is_last=True),
    "TIFF": put_broken_tag(),
}


@pytest.mark.filterwarnings("ignore")  # as while a dataset is prepared
@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_metadata_that_cannot_be_read_do_no_harm(content):
    clean = encode(PICTURE, "JPEG") if content.startswith(b"\xff") else encode(PICTURE)
    one, other = (decode(make_source(each), 16).pixels for each in (content, clean))
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    "content",
    [
        put_segment(1, b"Exif\0\0" + make_broken_exif()),
        PHOTOSHOP[: 2 + 4 + 20] + put_segment(1, b"Exif\0\0" + make_broken_exif())[2:],
        put_chunk(b"eXIf", make_broken_exif()),
        encode(PICTURE, "TIFF", tiffinfo={ORIENTATION: 6}),
    ],
    ids=["JPEG", "JPEG with more that cannot be read", "PNG", "TIFF"],
)
def test_the_orientation_is_heeded_beside_metadata_that_cannot_be_read(content):
    picture = decode(make_source(content), 40)
    encoded = encode(PICTURE, "JPEG") if content.startswith(b"\xff") else encode(PICTURE)
    upright = Image.open(io.BytesIO(encoded)).transpose(Image.Transpose.ROTATE_270)
    assert (picture.width, picture.height) == (24, 40) and picture.pixels.tobytes() == upright.tobytes()


def make_bomb():
    content = bytearray(encode(Image.new("1", (8, 8))))
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (make_bomb(), r"\(Image size \(400000000 pixels\) exceeds limit of \d+ pixels.*\); make it smaller, or set"),
        (encode(Image.new("F", (9, 9)), "TIFF"), "no largest one is stated.*; convert it to 8 or 16 bits, or set"),
        (encode(Image.new("RGB", (9, 9)), "AVIF")[:-5], r"\(.+\); remove or replace it, or set"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"in none of the formats JPEG, PNG, .*\); remove"),
    ],
    ids=["too large", "no range", "not an OSError", "a program"],
)
def test_what_cannot_be_decoded_is_named_with_the_reason(content, problem):
    with pytest.raises(UndecodableImageError, match=rf"a picture cannot be decoded as an image .*{problem}"):
        decode(make_source(content), 16)


def test_a_name_of_several_lines_is_shown_on_one():
    with pytest.raises(UndecodableImageError, match=r"^'a\\nb\.png' cannot be decoded"):
        decode(SourceImage(1, "a\nb.png", b"", 0, "", None), 16)


def test_the_first_picture_is_taken_and_16_bits_are_scaled():
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        pixels = decode_whole(frames[0], kind, save_all=True, append_images=frames[1:], **LOSSLESS.get(kind, {}))
        assert pixels[4, 4].tolist() == [255, 0, 0]
    numbers = np.array([[0, 256, 65535]], ">u2")
    files = [b"P5 3 1 65535\n" + numbers.tobytes(), encode(Image.frombytes("I;16B", (3, 1), numbers.tobytes()), "TIFF")]
    for content in files:
        assert np.asarray(decode(make_source(content), 9).pixels)[0, :, 0].tolist() == [0, 1, 255]


LOSSLESS = {"WEBP": {"lossless": True}}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_garbled_files_are_decoded_or_named(kind):
    generator = random.Random(0)
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x100] = 6, 40
    content = encode(PICTURE, kind, **({"exif": exif} if kind in {"JPEG", "PNG", "WEBP", "TIFF"} else {}))
    outcomes = Counter()
    for _ in range(100):
        garbled = bytearray(content)
        for _ in range(generator.choice([1, 1, 4])):
            garbled[generator.randrange(min(len(garbled), generator.choice([60, 10**6])))] = generator.randrange(256)
        with warnings.catch_warnings(action="ignore"):
            prepared = prepare(make_source(bytes(garbled)), 16)
        if isinstance(prepared, UndecodableImageError):
            outcomes["named"] += str(prepared).startswith("a picture cannot be decoded as an image (")
        else:
            pixels, row = prepared
            outcomes["decoded"] += (
                pixels.shape == (16, 16, 3) and min(row["original_width"], row["original_height"]) > 0
            )
    assert outcomes["decoded"] and outcomes["named"] and outcomes.total() == 100


@pytest.fixture(scope="module")
def photographs():
    """Encoded, 500 wide and 650 high."""
    return [jpeg(photograph(500, 650, seed)) for seed in range(2)]


@pytest.fixture
def prepare_both(monkeypatch):
    """Prepares from the reduced and from the whole picture; returns the pixels of both, and the reduction."""

    def prepare_both(content, size):
        reduction = decode(make_source(content), size).reduction
        reduced, row = prepare(make_source(content), size)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "MARGIN", 10**6)
            whole, row_of_whole = prepare(make_source(content), size)
        assert row == row_of_whole
        return reduced.astype(int), whole.astype(int), reduction

    return prepare_both


@pytest.mark.parametrize(
    ("width", "height", "size", "reduction"),
    [
        (500, 650, 64, 2), (650, 500, 64, 2), (500, 650, 62, 4), (500, 650, 32, 4), (500, 650, 24, 8), (500, 650, 8, 8),
        (256, 300, 64, 2), (255, 300, 64, 1), (300, 255, 64, 1), (64, 64, 64, 1), (64, 64, 16, 2), (40, 40, 64, 1),
    ],
)  # fmt: skip
def test_twice_the_requested_size_remains(width, height, size, reduction):
    picture = decode(make_source(encode_jpeg(np.zeros((height, width, 3), np.uint8))), size)
    assert picture.reduction == reduction and (picture.width, picture.height) == (width, height)
    assert picture.pixels.size == (-(-width // reduction), -(-height // reduction))
    assert reduction == 1 or min(picture.pixels.size) >= 2 * size


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_formats_are_decoded_whole(kind):
    assert decode(make_source(encode_jpeg(np.zeros((650, 500, 3), np.uint8), kind=kind)), 64).reduction == 1


@pytest.mark.parametrize(
    ("size", "reduction", "mean", "most"),
    [(64, 2, 0.4, 16), (125, 2, 0.7, 24), (62, 4, 0.8, 24), (31, 8, 1.1, 24)],  # but for the first, just twice the size
)
@pytest.mark.parametrize("seed", [0, 1])
def test_photographs_come_out_nearly_the_same(prepare_both, photographs, seed, size, reduction, mean, most):
    reduced, whole, found = prepare_both(photographs[seed], size)
    assert found == reduction
    difference = reduced - whole
    assert np.abs(difference).mean() < mean and np.abs(difference).max() <= most
    assert np.abs(difference.mean()) < 0.1  # no lighter and no darker


def make_waves(width, height):
    """Smooth enough that scaling hardly changes it, steep enough that a shift by half a pixel does."""
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(x / 6.0), np.sin(y / 6.0), np.sin((x + y) / 9.0)]
    return (128 + 100 * np.stack(channels, axis=2)).astype(np.uint8)


@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("width", "height"), [(328, 264), (323, 262), (257, 319)])
def test_crop_and_size_are_those_of_the_whole_picture(prepare_both, width, height, orientation):
    content = encode_jpeg(make_waves(width, height), orientation=orientation, quality=98, subsampling="4:4:4")
    reduced, whole, reduction = prepare_both(content, 64)
    # A picture to be turned is decoded whole if a remainder at its edge would shift it.
    assert reduction == (1 if orientation not in {None, 1} and (width % 8 or height % 8) else 2)
    assert np.abs(reduced - whole).max() <= 4
    _, row = prepare(make_source(content), 64)
    size = (height, width) if orientation and orientation >= 5 else (width, height)
    assert (row["original_width"], row["original_height"]) == size


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_printed_photographs_are_reduced_too(prepare_both, photographs, mode):
    pixels = np.asarray(Image.open(io.BytesIO(photographs[0])))
    reduced, whole, reduction = prepare_both(encode_jpeg(pixels, mode), 64)
    assert reduction == 2 and np.abs(reduced - whole).mean() < 1.0


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.98])
def test_a_cut_off_file_is_damaged_at_a_reduced_scale_too(photographs, progressive, kept):
    content = encode_jpeg(np.asarray(Image.open(io.BytesIO(photographs[0]))), progressive=progressive)
    with pytest.raises(UndecodableImageError, match="a picture cannot be decoded as an image"):
        decode(make_source(content[: int(len(content) * kept)]), 64)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no copies of the real images at {REAL}")
def test_real_images_of_the_requested_size_stay_as_they_are():
    images = DATASETS["flowers102"].images(REAL)
    for image, _ in zip(images, range(200), strict=False):
        by_pillow = np.asarray(Image.open(io.BytesIO(image.content)).convert("RGB"))
        np.testing.assert_array_equal(prepare(image, 64)[0], by_pillow)
