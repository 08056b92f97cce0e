"""The prepared dataset: one array, one index, from any images."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from contract.errors import StageError
from stages.datasets import DATASETS
from stages.datasets.pin import list_files, make_receipt
from stages.datasets.source import SourceImage
from stages.preprocess import SKIPPED_COLUMNS, choose_splits, preprocess
from stages.runtime.outputs import write_json
from tests.stages.datasets.files import encode, md5, read_files, write_files

DATA, DATASET, RECEIPT = Path("data"), Path("build/dataset"), Path("build/download.json")
SYNTHETIC = DATASETS["synthetic_flowers"]


@pytest.fixture
def flowers(folder, make_params):
    """Drawn flowers, downloaded."""
    DATA.mkdir()
    SYNTHETIC.fetch(make_params().download, DATA, previous=Path("none"))
    write_json(RECEIPT, make_receipt("synthetic_flowers", list_files(DATA)))


@pytest.fixture
def put_photographs(folder):
    """Makes a downloaded folder of photographs, given by name and encoded content."""

    def put(contents):
        write_files(DATA, contents)
        write_json(RECEIPT, make_receipt("folder", list_files(DATA)))

    return put


def make_noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_png(width=16, height=16, seed=0):
    return encode(Image.fromarray(make_noise(width, height, seed)))


def read_table(name="index.csv"):
    return pd.read_csv(DATASET / name, keep_default_na=False)


def read_images():
    return np.load(DATASET / "images.npy")


def test_rows_of_the_array_are_rows_of_the_index(put_photographs, make_params):
    contents = {f"{name}.png": make_png(seed=seed) for seed, name in enumerate(["b", "a", "rose/d", "rose/c"])}
    # Hidden files, which no dataset reads, are ignored; images are resized.
    put_photographs(contents | {"tulip/e.png": make_png(40, 30)})
    write_files(DATA, {".DS_Store": b"of the desktop"})
    preprocess(make_params())
    index = read_table()
    assert list(index["name"]) == ["a.png", "b.png", "rose/c.png", "rose/d.png", "tulip/e.png"]
    *rows, resized = index.itertuples()
    assert (resized.original_width, resized.original_height) == (40, 30) and read_images().shape == (5, 16, 16, 3)
    for row, image in zip(rows, read_images(), strict=False):
        np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(contents[row.name]))))
        assert row.source_md5 == md5(contents[row.name])
    assert list(index["number"]) == [1, 2, 3, 4, 5]
    assert list(index["class_name"]) == ["", "", "rose", "rose", "tulip"]
    assert list(index["class_number"]) == [0, 0, 1, 1, 2]
    assert set(index["split"]) <= {"train", "valid", "test"}


def test_drawn_images_are_taken_as_they_are_and_summed_up(flowers, make_params):
    preprocess(make_params())
    before, index = read_files(DATASET), read_table()
    np.testing.assert_array_equal(read_images(), np.load("data/images.npy"))
    buffer = io.BytesIO()
    np.save(buffer, read_images())
    assert before["images.npy"] == buffer.getvalue()
    assert list(read_table("skipped.csv")) == list(SKIPPED_COLUMNS)
    assert json.loads(before["dataset.json"]) == {
        "dataset": "synthetic_flowers",
        "source_digest": json.loads(Path("build/download.json").read_text())["digest"],
        "image_size": 16,
        "num_images": 24,
        "num_skipped": 0,
        "images_md5": md5(before["images.npy"]),
        "splits": index["split"].value_counts().to_dict(),
        "num_classes": index["class_name"].nunique(),
    }
    # Again, and with damaged images allowed: the same bytes.
    preprocess(make_params({"preprocess.skip_damaged": True}))
    assert read_files(DATASET) == before
    assert sorted(before) == ["dataset.json", "images.npy", "index.csv", "skipped.csv"]


def test_official_splits_are_kept_and_others_chosen(flowers, make_params, monkeypatch):
    official = [("train", "valid", "test", None)[i % 4] for i in range(24)]
    images = [SourceImage(i + 1, f"{i}", make_noise(16, 16, i), 0, "", split) for i, split in enumerate(official)]
    monkeypatch.setattr(SYNTHETIC, "images", lambda _: iter(images))
    preprocess(make_params())
    index = read_table()
    chosen = choose_splits(index, make_params().preprocess.valid_fraction)
    assert list(index["split"]) == [split or chosen[i] for i, split in enumerate(official)]


def test_the_first_digits_of_a_digest_choose_the_split():
    digests = ["0" * 32, "3" + "f" * 31, "4" + "0" * 31, "8" + "0" * 31]
    index = pd.DataFrame({"source_md5": digests})
    assert choose_splits(index, 0.25) == ["valid", "valid", "test", "train"]
    # So a split stays when images come and go.
    assert choose_splits(index[2:], 0.25) == ["test", "train"]


def test_images_with_the_same_bytes_share_a_split(put_photographs, make_params):
    # A copy of a training image among the validation images would flatter every figure.
    put_photographs({f"{i}.png": make_png() for i in range(6)})
    preprocess(make_params())
    assert read_table()["split"].nunique() == 1


DAMAGED = [(kind, kept) for kind in ("PNG", "JPEG", "WEBP") for kept in (0, 10, 0.5)] + [("JPEG", 0.95)]


@pytest.mark.parametrize(("kind", "kept"), DAMAGED)
def test_a_damaged_image_is_an_error_or_skipped(put_photographs, make_params, capsys, kind, kept):
    content = encode(Image.fromarray(make_noise(32, 32)), kind)
    broken = content[: int(len(content) * kept) if isinstance(kept, float) else kept]
    names = ["rose/a.png", "rose/c.png", "tulip/d.png"]
    put_photographs({name: make_png(seed=seed) for seed, name in enumerate(names)} | {"rose/b.jpg": broken})
    with pytest.raises(StageError, match=r"rose/b\.jpg cannot be decoded .*preprocess\.skip_damaged: true"):
        preprocess(make_params())
    assert not (DATASET / "images.npy").exists()

    # Skipped, rows of the array and of the index still go together, and the others keep their numbers.
    preprocess(make_params({"preprocess.skip_damaged": True}))
    index = read_table()
    assert list(index["name"]) == names and list(index["number"]) == [1, 3, 4]
    np.testing.assert_array_equal(read_images(), [make_noise(16, 16, seed) for seed in range(3)])
    summary = json.loads((DATASET / "dataset.json").read_text())
    assert summary["num_images"] == 3 and summary["num_skipped"] == 1 and sum(summary["splits"].values()) == 3
    (row,) = read_table("skipped.csv").itertuples()
    assert (row.number, row.name, row.class_number, row.class_name) == (2, "rose/b.jpg", 0, "rose")
    assert row.source_md5 == md5(broken) and row.reason
    assert (
        "warning: 1 images cannot be decoded and are left out, see build/dataset/skipped.csv" in capsys.readouterr().out
    )


def test_only_damaged_images_are_an_error(put_photographs, make_params):
    put_photographs({"a.jpg": b"", "b.jpg": b"no image"})
    with pytest.raises(StageError, match="none of the 2 images can be decoded"):
        preprocess(make_params({"preprocess.skip_damaged": True}))
    assert not (DATASET / "images.npy").exists()


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (lambda: (DATA / "a.png").write_bytes(make_png(seed=1)), r"data/a\.png has other bytes"),
        ((DATA / "a.png").unlink, r"data/a\.png is missing"),
        (
            lambda: write_files(DATA, dict.fromkeys(["rose/new.png", "notes.txt"], make_png())),
            r"data holds files that were not downloaded: notes\.txt, rose/new\.png\. ",
        ),
        (
            lambda: write_files(DATA, {f"{name}.png": make_png() for name in "febcd"}),
            r"data holds files that were not downloaded: b\.png, c\.png, d\.png and 2 more\. ",
        ),
    ],
)
def test_data_that_is_not_what_was_downloaded_is_refused(put_photographs, make_params, tamper, problem):
    put_photographs({"a.png": make_png(), "rose/d.png": make_png(), ".DS_Store": b"hidden"})
    tamper()
    with pytest.raises(StageError, match=rf"{problem}.*`dvc repro --force download`"):
        preprocess(make_params())
    assert not DATASET.exists()


def test_missing_images_are_an_error(flowers, make_params, monkeypatch):
    images = list(SYNTHETIC.images(DATA))[:-1]
    monkeypatch.setattr(SYNTHETIC, "images", lambda _: iter(images))
    with pytest.raises(StageError, match="synthetic_flowers should hold 24 images, got 23"):
        preprocess(make_params())
