"""JPEGs decoded at a reduced scale: when, how near to the whole, and that all of the geometry is kept."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.preprocess import jpeg, photograph
from contract.errors import StageError
from stages import preprocess as module
from stages.datasets import DATASETS, SourceImage
from stages.preprocess import decode, prepare

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "flowers-102"


def source(content):
    return SourceImage(1, "a picture", content, 0, "", None)


def encoded(pixels, kind="JPEG", mode="RGB", orientation=None, **options):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format=kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photographs():
    """Encoded, 500 wide and 650 high."""
    return [jpeg(photograph(500, 650, seed)) for seed in range(2)]


@pytest.fixture
def both(monkeypatch):
    """Prepares from the reduced and from the whole picture; gives the pixels of both, and the reduction."""

    def prepare_both(content, size):
        reduction = decode(source(content), size).reduction
        reduced = prepare(source(content), size)
        with monkeypatch.context() as patch:
            patch.setattr(module, "MARGIN", 10**6)
            whole = prepare(source(content), size)
        assert reduced.row == whole.row
        return reduced.pixels.astype(int), whole.pixels.astype(int), reduction

    return prepare_both


@pytest.mark.parametrize(
    ("width", "height", "size", "reduction"),
    [
        (500, 650, 64, 2), (650, 500, 64, 2), (500, 650, 62, 4), (500, 650, 32, 4), (500, 650, 24, 8), (500, 650, 8, 8),
        (256, 300, 64, 2), (255, 300, 64, 1), (300, 255, 64, 1), (64, 64, 64, 1), (64, 64, 24, 1), (64, 64, 16, 2),
        (40, 40, 64, 1),
    ],
)  # fmt: skip
def test_twice_the_wanted_size_remains(width, height, size, reduction):
    picture = decode(source(encoded(np.zeros((height, width, 3), np.uint8))), size)
    assert picture.reduction == reduction and (picture.width, picture.height) == (width, height)
    assert picture.pixels.size == (-(-width // reduction), -(-height // reduction))
    assert reduction == 1 or min(picture.pixels.size) >= 2 * size


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_formats_are_decoded_whole(kind):
    assert decode(source(encoded(np.zeros((650, 500, 3), np.uint8), kind)), 64).reduction == 1


@pytest.mark.parametrize(
    ("size", "reduction", "mean", "most"),
    [
        (64, 2, 0.4, 16),
        # No more than twice the wanted size remains.
        (125, 2, 0.7, 24),
        (62, 4, 0.8, 24),
        (31, 8, 1.1, 24),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_photographs_come_out_nearly_the_same(both, photographs, seed, size, reduction, mean, most):
    reduced, whole, got = both(photographs[seed], size)
    assert got == reduction
    difference = reduced - whole
    assert np.abs(difference).mean() < mean and np.abs(difference).max() <= most
    assert np.abs(difference.mean()) < 0.1  # no lighter and no darker


def waves(width, height):
    """So smooth that scaling hardly changes it, so steep that a shift by half a pixel does."""
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(x / 6.0), np.sin(y / 6.0), np.sin((x + y) / 9.0)]
    return (128 + 100 * np.stack(channels, axis=2)).astype(np.uint8)


@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("width", "height"), [(328, 264), (323, 262), (257, 319)])
def test_the_square_is_cropped_where_the_whole_picture_has_it(both, width, height, orientation):
    content = encoded(waves(width, height), orientation=orientation, quality=98, subsampling="4:4:4")
    reduced, whole, reduction = both(content, 64)
    # What is turned over is decoded whole where a rest at its edge would shift it.
    assert reduction == (1 if orientation not in {None, 1} and (width % 8 or height % 8) else 2)
    assert np.abs(reduced - whole).max() <= 4


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_the_size_of_the_original_is_that_of_the_upright_file(orientation):
    content = encoded(np.zeros((640, 480, 3), np.uint8), orientation=orientation)
    row = prepare(source(content), 16).row
    assert (row["original_width"], row["original_height"]) == ((640, 480) if orientation >= 5 else (480, 640))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_printed_photographs_are_reduced_too(both, photographs, mode):
    pixels = np.asarray(Image.open(io.BytesIO(photographs[0])))
    reduced, whole, reduction = both(encoded(pixels, mode=mode), 64)
    assert reduction == 2 and np.abs(reduced - whole).mean() < 1.0


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.98])
def test_what_is_cut_off_is_damaged_at_a_reduced_scale_too(photographs, progressive, kept):
    content = encoded(np.asarray(Image.open(io.BytesIO(photographs[0]))), progressive=progressive)
    assert decode(source(content), 64).reduction == 2
    with pytest.raises(StageError, match="a picture cannot be decoded as an image"):
        decode(source(content[: int(len(content) * kept)]), 64)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no copies of the real images at {REAL}")
def test_copies_of_the_wanted_size_come_out_as_they_are():
    images = DATASETS["flowers102"].images(REAL)
    for image, _ in zip(images, range(200), strict=False):
        as_pillow = np.asarray(Image.open(io.BytesIO(image.content)).convert("RGB"))
        np.testing.assert_array_equal(prepare(image, 64).pixels, as_pillow)
