"""A folder of images as a dataset."""

from pathlib import Path

import pytest

from contract.errors import StageError
from stages.datasets import DATASETS
from tests.stages.datasets.files import read_files, write_files

FOLDER = DATASETS["folder"]


@pytest.fixture
def make_source(tmp_path):
    """Makes a folder of files with these names."""
    return lambda *names: write_files(tmp_path / "source", {name: name.encode() for name in names})


@pytest.fixture
def copy(fetch):
    """Fetches a folder and returns the copy."""
    return lambda root: fetch("folder", {"download.source": str(root)})


def test_sub_folders_are_classes_and_files_are_copied(make_source, copy):
    root = make_source("tulip/b.png", "tulip/a.png", "rose/dog/x.png", "rose/c.png", "rose-red/y.png", "rose.png")
    folder = copy(root)
    images = list(FOLDER.images(folder))
    # Images are numbered from 1 and classes from 0, in the order of their names, "-" and "." before "/".
    assert [(image.number, image.name, image.class_number, image.class_name, image.split) for image in images] == [
        (1, "rose-red/y.png", 2, "rose-red", None),
        (2, "rose.png", 0, "", None),
        (3, "rose/c.png", 1, "rose", None),
        (4, "rose/dog/x.png", 3, "rose/dog", None),
        (5, "tulip/a.png", 4, "tulip", None),
        (6, "tulip/b.png", 4, "tulip", None),
    ]
    assert FOLDER.count(folder) == 6 and read_files(folder) == read_files(root)
    assert {image.name: image.content for image in images} == read_files(root)


@pytest.mark.parametrize(
    ("kept", "left_out"),
    [
        (["a.png", "b.PNG", "c.jpg", "d.JPEG", "e.Jpg", "f.webp"], ["notes.txt", "g.png.bak", "png", "h.gif"]),
        (["a.png"], [".b.png", "._c.jpg", ".thumbnails/d.png", "rose/.cache/e.png"]),
        (["a.png/b.png"], []),
    ],
    ids=["by suffix, in either case", "hidden", "a folder that is named like an image"],
)
def test_visible_images_are_copied_and_other_files_left_out(make_source, copy, kept, left_out):
    assert sorted(read_files(copy(make_source(*kept, *left_out)))) == sorted(kept)


def test_a_source_may_lie_below_a_hidden_folder_or_home(make_source, tmp_path, copy, monkeypatch):
    hidden = tmp_path / ".hidden"
    make_source("a.png").rename(hidden)
    assert sorted(read_files(copy(hidden))) == ["a.png"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sorted(read_files(copy(Path("~/.hidden")))) == ["a.png"]


def test_a_folder_without_images_is_an_error_that_lists_the_suffixes(make_source, copy):
    with pytest.raises(StageError, match=r"source holds no images.*\.jpeg, \.jpg, \.png, \.webp"):
        copy(make_source("notes.txt", ".hidden.png"))


@pytest.mark.parametrize("name", ["missing", "source/a.png"])
def test_a_source_that_is_no_folder_is_an_error_that_names_it(make_source, copy, tmp_path, name):
    make_source("a.png")
    with pytest.raises(StageError, match=rf"download\.source must be a folder of images, got .*/{name}"):
        copy(tmp_path / name)
