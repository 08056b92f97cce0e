"""A directory of images as a dataset."""

import io
from pathlib import Path

import pytest
from PIL import Image

from stages.datasets import DATASETS, DatasetError

FOLDER = DATASETS["folder"]


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path):
    """Makes a directory of images, their names given."""

    def make(*names):
        root = tmp_path / "source"
        root.mkdir()
        for index, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png((index, 0, 0)))
        return root

    return make


@pytest.fixture
def fetched(tmp_path, make_params):
    """Fetches a directory and gives the folder that holds the copy."""

    def fetch(root):
        target = tmp_path / "incoming"
        target.mkdir()
        params = make_params({"download.dataset": "folder", "download.source": str(root)})
        FOLDER.fetch(params.download, target, previous=tmp_path / "data")
        return target

    return fetch


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_sub_folders_are_classes(source, fetched):
    folder = fetched(source("tulip/b.png", "tulip/a.png", "rose/dog/x.png", "rose/c.png", "top.png"))
    images = list(FOLDER.images(folder))
    assert [(image.name, image.class_name) for image in images] == [
        ("rose/c.png", "rose"),
        ("rose/dog/x.png", "rose/dog"),
        ("top.png", ""),
        ("tulip/a.png", "tulip"),
        ("tulip/b.png", "tulip"),
    ]
    # Numbered from 1 in the order of the names; classes from 0 in theirs.
    assert [image.number for image in images] == [1, 2, 3, 4, 5]
    assert [image.class_number for image in images] == [1, 2, 0, 3, 3]
    assert all(image.split is None for image in images)
    assert FOLDER.count(folder) == 5


def test_the_copy_holds_the_same_bytes(source, fetched):
    root = source("rose/a.png", "b.png")
    folder = fetched(root)
    assert names(folder) == ["b.png", "rose/a.png"]
    for image in FOLDER.images(folder):
        assert image.content == (root / image.name).read_bytes()


def test_the_order_goes_by_the_whole_path(source, fetched):
    # As strings, "-" before "/": another order than that of path objects would change with the platform.
    folder = fetched(source("a/z.png", "a-b/y.png", "a.png", "B.png"))
    assert [image.name for image in FOLDER.images(folder)] == ["B.png", "a-b/y.png", "a.png", "a/z.png"]


def test_only_images_are_taken_whatever_the_case_of_their_suffix(source, fetched):
    kept = ["a.png", "b.PNG", "c.jpg", "d.JPEG", "e.Jpg", "f.webp"]
    folder = fetched(source(*kept, "notes.txt", "g.png.bak", "png", "h.gif"))
    assert names(folder) == sorted(kept)


def test_hidden_files_and_folders_are_left_out(source, fetched):
    folder = fetched(source("a.png", ".b.png", "._c.jpg", ".thumbnails/d.png", "rose/.cache/e.png"))
    assert names(folder) == ["a.png"]


def test_a_source_below_a_hidden_folder_is_no_hidden_image(source, tmp_path, fetched):
    root = source("a.png")
    hidden = tmp_path / ".hidden"
    root.rename(hidden)
    assert names(fetched(hidden)) == ["a.png"]


def test_a_folder_named_like_an_image_is_no_image(source, fetched):
    folder = fetched(source("a.png/b.png"))
    assert names(folder) == ["a.png/b.png"]
    assert [image.class_name for image in FOLDER.images(folder)] == ["a.png"]


def test_home_is_understood(source, fetched, monkeypatch):
    root = source("a.png")
    monkeypatch.setenv("HOME", str(root.parent))
    assert names(fetched(Path("~") / root.name)) == ["a.png"]


def test_a_folder_without_images_is_an_error_that_names_what_was_looked_for(source, fetched):
    with pytest.raises(DatasetError, match=r"source holds no image; looked for \.jpeg, \.jpg, \.png, \.webp in it"):
        fetched(source("notes.txt", ".hidden.png"))


@pytest.mark.parametrize("name", ["missing", "source/a.png"])
def test_what_is_no_directory_is_an_error_that_names_it(source, fetched, tmp_path, name):
    source("a.png")
    with pytest.raises(DatasetError, match=rf"download\.source must be a directory of images, got .*/{name}, which"):
        fetched(tmp_path / name)
