"""The prepared dataset: one array, one index, from any images."""

import hashlib
import io
import json
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from contract.errors import StageError
from stages import preprocess as module
from stages.datasets import DATASETS, SourceImage
from stages.download import folder_digest, inventory, write_receipt
from stages.preprocess import (
    SKIPPED_COLUMNS,
    Picture,
    assigned_splits,
    centre_cropped,
    decode,
    parallel_map,
    preprocess,
)

DATASET = Path("build/dataset")


@pytest.fixture
def downloaded(folder, make_params):
    """Fetches a dataset into data/ and writes the receipt, as the stage before does."""

    def fetch(changes=None):
        Path("data").mkdir()
        wanted = make_params(changes).download
        DATASETS[wanted.dataset].fetch(wanted, Path("data"), previous=Path("none"))
        write_receipt(wanted, inventory(Path("data")))

    return fetch


@pytest.fixture
def photographs(folder, downloaded):
    """Downloads a folder of photographs, given by name and encoded content."""

    def fetch(contents):
        for name, content in contents.items():
            path = Path("photographs", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        downloaded({"download.dataset": "folder", "download.source": "photographs"})

    return fetch


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def decoded(image, kind="PNG", **options):
    content = encoded(image, kind, **options)
    return np.asarray(decode(SourceImage(1, "a picture", content, 0, "", None), size=10_000).pixels)


def whole(image):
    return Picture(image, *image.size, reduction=1.0)


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read_table(name):
    return pd.read_csv(DATASET / name, keep_default_na=False)


def read_index():
    return read_table("index.csv")


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(20, 20, (0, 0, 20, 20)), (30, 20, (5, 0, 25, 20)), (20, 31, (0, 5, 20, 25)), (21, 20, (0, 0, 20, 20))],
)
@pytest.mark.parametrize("size", [8, 20, 40])
def test_the_central_square_is_resized_as_pillow_does(width, height, box, size):
    pixels = noise(width, height)
    left, top, right, bottom = box
    by_hand = Image.fromarray(pixels[top:bottom, left:right]).resize((size, size), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(centre_cropped(whole(Image.fromarray(pixels)), size), np.asarray(by_hand))


def test_shrinking_averages_over_all_pixels():
    # A chequerboard becomes grey; without antialiasing it would become black or white.
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    picture = Image.fromarray(board.astype(np.uint8)).convert("RGB")
    assert np.abs(centre_cropped(whole(picture), 8).astype(int) - 127).max() <= 2


def test_rows_of_the_array_are_rows_of_the_index(photographs, make_params):
    pixels = {f"{name}.png": noise(16, 16, seed) for seed, name in enumerate(["b", "a", "rose/d", "rose/c"])}
    photographs({name: encoded(Image.fromarray(image)) for name, image in pixels.items()})
    preprocess(make_params())
    index, images = read_index(), np.load(DATASET / "images.npy")
    assert list(index["name"]) == ["a.png", "b.png", "rose/c.png", "rose/d.png"]
    for row in index.itertuples():
        np.testing.assert_array_equal(images[row.Index], pixels[row.name])
        assert row.source_md5 == hashlib.md5(encoded(Image.fromarray(pixels[row.name]))).hexdigest()
    assert list(index["number"]) == [1, 2, 3, 4]
    assert list(index["class_name"]) == ["", "", "rose", "rose"]
    assert list(index["class_number"]) == [0, 0, 1, 1]
    assert set(index["split"]) <= {"train", "valid", "test"}


def test_the_index_keeps_the_size_of_the_original(photographs, make_params):
    photographs({"a.png": encoded(Image.fromarray(noise(40, 30)))})
    preprocess(make_params())
    row = read_index().iloc[0]
    assert (row.original_width, row.original_height) == (40, 30)


def test_the_summary_counts_and_names_the_bytes(downloaded, make_params):
    downloaded()
    preprocess(make_params())
    summary, index = json.loads((DATASET / "dataset.json").read_text()), read_index()
    assert summary["dataset"] == "synthetic_flowers" and summary["image_size"] == 16
    assert summary["num_skipped"] == 0 and list(read_table("skipped.csv")) == list(SKIPPED_COLUMNS)
    assert summary["num_images"] == len(index) == len(np.load(DATASET / "images.npy")) == 24
    assert summary["images_md5"] == hashlib.md5((DATASET / "images.npy").read_bytes()).hexdigest()
    assert summary["source_digest"] == folder_digest(inventory(Path("data")))
    assert summary["splits"] == index["split"].value_counts().to_dict() and sum(summary["splits"].values()) == 24
    assert summary["num_classes"] == index["class_name"].nunique()


def test_the_array_is_as_numpy_writes_it(downloaded, make_params):
    downloaded()
    preprocess(make_params())
    buffer = io.BytesIO()
    np.save(buffer, np.load(DATASET / "images.npy"))
    assert (DATASET / "images.npy").read_bytes() == buffer.getvalue()


def test_drawn_images_of_the_wanted_size_are_taken_as_they_are(downloaded, make_params):
    downloaded()
    preprocess(make_params())
    np.testing.assert_array_equal(np.load(DATASET / "images.npy"), np.load("data/images.npy"))


def test_the_same_data_gives_the_same_bytes(downloaded, make_params):
    downloaded()
    preprocess(make_params())
    first = {path.name: path.read_bytes() for path in DATASET.iterdir()}
    preprocess(make_params())
    assert {path.name: path.read_bytes() for path in DATASET.iterdir()} == first
    assert sorted(first) == ["dataset.json", "images.npy", "index.csv", "skipped.csv"]


def test_official_splits_are_kept_and_others_filled_in(downloaded, make_params, monkeypatch):
    downloaded()
    dataset = DATASETS["synthetic_flowers"]
    official = [("train", "valid", "test", None)[i % 4] for i in range(24)]
    images = [SourceImage(i + 1, f"{i}", noise(16, 16, i), 0, "", split) for i, split in enumerate(official)]
    monkeypatch.setattr(dataset, "images", lambda _: iter(images))
    preprocess(make_params())
    index = read_index()
    drawn = assigned_splits(index, make_params().preprocess.valid_fraction)
    assert list(index["split"]) == [split or drawn[i] for i, split in enumerate(official)]


def index_of(count):
    return pd.DataFrame({"source_md5": [hashlib.md5(f"{i}".encode()).hexdigest() for i in range(count)]})


def test_a_split_stays_when_images_come_and_go():
    # In another order, beside other images.
    index = index_of(500)
    whole = dict(zip(index["source_md5"], assigned_splits(index, 0.1), strict=True))
    part = index.iloc[400:100:-3].reset_index(drop=True)
    assert assigned_splits(part, 0.1) == [whole[digest] for digest in part["source_md5"]]


def test_the_splits_have_their_shares():
    counts = pd.Series(assigned_splits(index_of(4000), 0.1)).value_counts(normalize=True)
    assert counts["valid"] == pytest.approx(0.1, abs=0.02)
    assert counts["test"] == pytest.approx(0.1, abs=0.02)
    assert counts["train"] == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("digest", "split"),
    [("0" * 32, "valid"), ("3" + "f" * 31, "valid"), ("4" + "0" * 31, "test"), ("8" + "0" * 31, "train")],
)
def test_the_digest_decides_by_its_first_digits(digest, split):
    assert assigned_splits(pd.DataFrame({"source_md5": [digest]}), 0.25) == [split]


def test_images_with_the_same_bytes_share_a_split(photographs, make_params):
    # A copy of a training image among the validation images would flatter every figure.
    same = encoded(Image.fromarray(noise(16, 16)))
    photographs({f"{i}.png": same for i in range(6)})
    preprocess(make_params())
    assert read_index()["split"].nunique() == 1


def test_a_photograph_is_put_upright():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to show it
    upright = decoded(Image.fromarray(pixels), exif=exif)
    assert upright.shape == (6, 4, 3)
    assert upright[0, 3].tolist() == [255, 255, 255] and upright.sum() == 3 * 255


def test_what_is_transparent_becomes_white():
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    np.testing.assert_array_equal(decoded(Image.fromarray(pixels)), [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]])


def test_greyscale_becomes_three_equal_channels():
    grey = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(decoded(Image.fromarray(grey)), np.repeat(grey[..., None], 3, axis=2))


def test_greyscale_of_16_bits_keeps_its_shades():
    grey = (np.arange(24, dtype=np.uint16) * 2730).reshape(4, 6)
    expected = np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(decoded(Image.fromarray(grey)), expected)


def test_transparent_greyscale_becomes_white():
    pixels = np.array([[[100, 255], [100, 0]]], np.uint8)
    np.testing.assert_array_equal(decoded(Image.fromarray(pixels, "LA")), [[[100] * 3, [255] * 3]])


def test_a_palette_is_looked_up_and_its_transparent_entry_is_white():
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.putdata([0, 1, 2])
    np.testing.assert_array_equal(decoded(picture), [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]])
    np.testing.assert_array_equal(decoded(picture, transparency=1), [[[10, 20, 30], [255] * 3, [70, 80, 90]]])


def test_printing_colours_become_screen_colours():
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 0] = 255  # all cyan ink
    red, green, blue = decoded(Image.fromarray(pixels, "CMYK"), kind="JPEG", quality=95).mean(axis=(0, 1))
    assert red < 5 and green > 250 and blue > 250


DAMAGED = [(kind, kept) for kind in ("PNG", "JPEG", "WEBP") for kept in (0, 10, 0.5)] + [("JPEG", 0.95)]


def damaged(kind, kept):
    """The first bytes of a file, by number or share."""
    content = encoded(Image.fromarray(noise(32, 32)), kind)
    return content[: int(len(content) * kept) if isinstance(kept, float) else kept]


def test_damaged_metadata_does_no_harm(photographs, make_params):
    pixels = encoded(Image.fromarray(noise(32, 32)), "JPEG")
    metadata = b"Exif\0\0II*\0"  # which should go on with an offset
    segment = b"\xff\xe1" + (len(metadata) + 2).to_bytes(2, "big") + metadata
    photographs({"a.jpg": pixels, "b.jpg": pixels[:2] + segment + pixels[2:]})
    preprocess(make_params())
    one, other = np.load(DATASET / "images.npy")
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("kind", "kept"), DAMAGED)
def test_a_damaged_image_is_an_error_that_names_it(photographs, make_params, kind, kept):
    photographs({"a.png": encoded(Image.fromarray(noise(16, 16))), "rose/broken.jpg": damaged(kind, kept)})
    message = r"rose/broken\.jpg cannot be decoded as an image .*remove or replace it, .*preprocess\.skip_damaged: true"
    with pytest.raises(StageError, match=message):
        preprocess(make_params())
    assert not (DATASET / "images.npy").exists()


@pytest.mark.parametrize(("kind", "kept"), DAMAGED)
def test_a_damaged_image_is_skipped_where_that_is_wanted(photographs, make_params, capsys, kind, kept):
    pixels = [noise(16, 16, seed) for seed in range(3)]
    broken, names = damaged(kind, kept), ["rose/a.png", "rose/c.png", "tulip/d.png"]
    whole_ones = dict(zip(names, (encoded(Image.fromarray(image)) for image in pixels), strict=True))
    photographs(whole_ones | {"rose/b.jpg": broken})
    preprocess(make_params({"preprocess.skip_damaged": True}))

    # Rows of the array and of the index still go together, and the others keep their numbers.
    index = read_index()
    assert list(index["name"]) == names and list(index["number"]) == [1, 3, 4]
    np.testing.assert_array_equal(np.load(DATASET / "images.npy"), pixels)
    summary = json.loads((DATASET / "dataset.json").read_text())
    assert summary["num_images"] == 3 and summary["num_skipped"] == 1 and sum(summary["splits"].values()) == 3

    (row,) = read_table("skipped.csv").itertuples()
    assert (row.number, row.name, row.class_number, row.class_name) == (2, "rose/b.jpg", 0, "rose")
    assert row.source_md5 == hashlib.md5(broken).hexdigest() and row.reason
    assert "1 damaged images left out, see build/dataset/skipped.csv" in capsys.readouterr().out

    before = {path.name: path.read_bytes() for path in DATASET.iterdir()}
    preprocess(make_params({"preprocess.skip_damaged": True}))
    assert {path.name: path.read_bytes() for path in DATASET.iterdir()} == before


def test_skipping_changes_nothing_where_all_is_well(downloaded, make_params):
    downloaded()
    preprocess(make_params())
    before = {path.name: path.read_bytes() for path in DATASET.iterdir()}
    preprocess(make_params({"preprocess.skip_damaged": True}))
    assert {path.name: path.read_bytes() for path in DATASET.iterdir()} == before


def test_nothing_but_damaged_images_is_an_error(photographs, make_params):
    photographs({"a.jpg": b"", "b.jpg": b"no image"})
    with pytest.raises(
        StageError, match="none of the 2 images can be decoded; the first is of no format that Pillow knows"
    ):
        preprocess(make_params({"preprocess.skip_damaged": True}))
    assert not (DATASET / "images.npy").exists()


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (lambda path: path.write_bytes(b"\0" + path.read_bytes()[1:]), "has other bytes than were downloaded"),
        (Path.unlink, "is missing"),
    ],
)
def test_data_that_was_tampered_with_is_refused(downloaded, make_params, tamper, problem):
    downloaded()
    tamper(Path("data/petals.npy"))
    with pytest.raises(StageError, match=rf"data/petals\.npy {problem}; `dvc repro --force download`"):
        preprocess(make_params())
    assert not DATASET.exists()


@pytest.mark.parametrize(
    ("added", "named"),
    [
        (["rose/new.png"], "rose/new.png"),
        (["notes.txt"], "notes.txt"),
        ([f"{name}.png" for name in "febcd"], "b.png, c.png, d.png and 2 more"),
    ],
)
def test_what_was_dropped_into_the_data_is_refused(photographs, make_params, added, named):
    picture = encoded(Image.fromarray(noise(16, 16)))
    photographs({"a.png": picture, "rose/d.png": picture})
    for name in added:
        Path("data", name).write_bytes(picture)
    with pytest.raises(StageError) as refused:
        preprocess(make_params())
    assert str(refused.value).startswith(f"data holds what was not downloaded: {named}; move it away")
    assert "`dvc repro --force download`" in str(refused.value) and not DATASET.exists()


def test_hidden_files_that_no_dataset_reads_are_no_matter(photographs, make_params):
    photographs({"a.png": encoded(Image.fromarray(noise(16, 16)))})
    Path("data/.DS_Store").write_bytes(b"of the desktop")
    preprocess(make_params())
    assert read_index()["name"].tolist() == ["a.png"]


def test_missing_images_are_an_error(downloaded, make_params, monkeypatch):
    downloaded()
    dataset = DATASETS["synthetic_flowers"]
    images = list(dataset.images(Path("data")))[:-1]
    monkeypatch.setattr(dataset, "images", lambda _: iter(images))
    with pytest.raises(StageError, match="synthetic_flowers should hold 24 images, got 23"):
        preprocess(make_params())


class Pulled:
    """Items, and how many of them have been asked for."""

    def __init__(self, count):
        self.count = count
        self.number = 0

    def __iter__(self):
        for item in range(self.count):
            self.number = item + 1
            yield item


@pytest.mark.parametrize("count", [0, 1, 100])
def test_parallel_results_are_in_order(monkeypatch, count):
    monkeypatch.setattr(module.os, "cpu_count", lambda: 3)

    def later_ones_finish_first(item):
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(parallel_map(later_ones_finish_first, range(count))) == [item * item for item in range(count)]


def test_only_a_few_items_are_read_ahead(monkeypatch):
    # Memory stays the same whatever the number of images.
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    items = Pulled(1000)
    ahead = [items.number - taken for taken, _ in enumerate(parallel_map(lambda item: item, items), start=1)]
    assert len(ahead) == 1000 and max(ahead) <= 4 * 2


def test_several_items_are_worked_on_at_once(monkeypatch):
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    meeting = threading.Barrier(2, timeout=10.0)
    assert len(list(parallel_map(lambda item: meeting.wait() or item, range(4)))) == 4


def test_an_error_of_one_item_is_raised_in_its_turn(monkeypatch):
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    items = Pulled(1000)
    results = parallel_map(lambda item: 10 // (5 - item), items)
    assert [next(results) for _ in range(5)] == [2, 2, 3, 5, 10]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert items.number < 50
