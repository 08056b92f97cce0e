"""A folder of images as a dataset."""

import contextlib
import os
import shutil
import socket
from pathlib import Path

import pytest

from contract.errors import StageError
from stages.datasets import DATASETS
from tests.stages.datasets.files import read_files, write_files

FOLDER = DATASETS["folder"]


@pytest.fixture
def make_source(tmp_path):
    """Makes a folder of files with these names."""
    return lambda *names: write_files(tmp_path / "source", {name: os.fsencode(name) for name in names})


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
    ("names", "numbers"),
    [
        (["1", "10", "2"], [1, 10, 2]),
        (["007", "100"], [7, 100]),
        (["test/5", "train/5", "train/12"], [5, 12, 5]),
        (["1", "01", "2"], [0, 1, 2]),  # two of one number
        (["1", "2", "rose"], [0, 1, 2]),
        (["-1", "2", "²"], [0, 1, 2]),
        (["1", "9" * 30], [0, 1]),
    ],
)
def test_folders_whose_names_are_numbers_are_the_classes_of_those_numbers(make_source, copy, names, numbers):
    images = FOLDER.images(copy(make_source(*(f"{name}/a.png" for name in names))))
    assert [image.class_number for image in images] == numbers


@pytest.mark.parametrize(
    ("kept", "left_out"),
    [
        (["a.png", "b.PNG", "c.jpg", "d.JPEG", "e.Jpg", "f.webp"], ["notes.txt", "g.png.bak", "png", "h.heic"]),
        (
            ["a.gif", "b.bmp", "c.TIF", "d.tiff", "e.avif", "f.jfif", "g.jp2", "h.pgm"],
            ["i.svg", "j.pdf", "k.cr3", "l.eps"],
        ),
        (["a.png"], [".b.png", "._c.jpg", ".thumbnails/d.png", "rose/.cache/e.png"]),
        (["a.png/b.png"], []),
    ],
    ids=["by suffix, in either case", "that Pillow reads", "hidden", "a folder that is named like an image"],
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
    with pytest.raises(StageError, match=r"source holds no images.*, \.jpeg, \.jpg, .*; it holds 1 \.txt"):
        copy(make_source("notes.txt", ".hidden.png"))


@pytest.mark.parametrize("name", ["missing", "source/a.png"])
def test_a_source_that_is_no_folder_is_an_error_that_names_it(make_source, copy, tmp_path, name):
    make_source("a.png")
    with pytest.raises(StageError, match=rf"download\.source must be a folder of images, got .*/{name}"):
        copy(tmp_path / name)


def test_what_is_not_taken_is_counted_and_named_in_one_line(make_source, copy, capsys):
    root = make_source("rose/a.png", "rose/b.HEIC", "rose/c.heic", "rose/d.cr3", "iris/e.cr3", "README")
    (root / "tulip").mkdir()
    (root / "rose/gone.png").symlink_to("nowhere")
    (root / "rose/back").symlink_to(root)
    os.mkfifo(root / "rose/pipe.png")  # opened, it would wait for ever
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(root):
        server.bind("rose/z.jpg")
    assert sorted(read_files(copy(root))) == ["rose/a.png"]
    assert capsys.readouterr().out.splitlines() == [
        f"download: warning: not taken from {root}: 2 .cr3, 2 .heic, 1 without a suffix; links to nothing or back, or "
        "no files: rose/back, rose/gone.png, rose/pipe.png and 1 more; folders without images: iris, tulip"
    ]


def test_links_are_followed_and_bytes_are_copied(make_source, copy, tmp_path):
    root = make_source("rose/a.png", "rose/b.png")
    write_files(tmp_path / "elsewhere", {"tulip/a.png": b"tulip", "one.png": b"one"})
    (root / "tulip").symlink_to(tmp_path / "elsewhere/tulip")
    (root / "rose/c.png").symlink_to(tmp_path / "elsewhere/one.png")
    (root / "lily").symlink_to("rose")
    copied = copy(root)
    assert [(image.class_name, image.name) for image in FOLDER.images(copied)] == [
        (name.partition("/")[0], name)
        for name in ["lily/a.png", "lily/b.png", "lily/c.png", "rose/a.png", "rose/b.png", "rose/c.png", "tulip/a.png"]
    ]
    assert read_files(copied)["tulip/a.png"] == b"tulip" and not any(path.is_symlink() for path in copied.rglob("*"))


def test_folders_of_splits_are_the_splits_and_hold_the_classes(make_source, copy, capsys):
    root = make_source("Train/rose/a.png", "Train/iris/b.png", "val/rose/c.png", "TEST/iris/d.png", "test/e.png")
    assert [(image.split, image.class_number, image.class_name) for image in FOLDER.images(copy(root))] == [
        ("test", 1, "iris"), ("train", 1, "iris"), ("train", 2, "rose"), ("test", 0, ""), ("valid", 2, "rose"),
    ]  # fmt: skip
    assert (
        f"download: the folders of {root} are taken as its own splits: test, train, valid\n" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (
            ["train/a.png", "test/b.png", "rose/c.png", "d.png"],
            r"folders of splits \(test, train\) beside d\.png, rose, ",
        ),
        (["rose/a.png", "test/b.png"], r"folders of splits \(test\) beside rose, whose split is not known: move"),
        (
            ["rose/train/a.png", "rose/Test/b.png"],
            r"rose/Test in download.source is named as a split.*\(Test/rose, not",
        ),
        (["photos/train/rose/a.png", "photos/val/rose/b.png"], r"photos/val in download.source is named as a split"),
        (["test/a.png", "val/b.png"], "holds images for test, val and none for train"),
        ([b"rose/caf\xe9.png".decode(errors="surrogateescape")], r"must be UTF-8: rename 'rose/caf\\udce9\.png'"),
    ],
)
def test_folders_that_could_mean_two_things_and_unusable_names_are_refused(make_source, copy, names, problem):
    with pytest.raises(StageError, match=problem):
        copy(make_source(*names))


def test_a_file_that_vanishes_or_cannot_be_read_is_named(make_source, copy, monkeypatch):
    root = make_source("a.png")

    def vanish(path, destination):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr(shutil, "copyfile", vanish)
    with pytest.raises(StageError, match=r"source/a\.png cannot be copied to .*a\.png: No such file or directory"):
        copy(root)
    monkeypatch.setattr(Path, "iterdir", lambda path: vanish(path, None))
    with pytest.raises(StageError, match=r"source cannot be read: No such file or directory"):
        copy(root)


@pytest.mark.parametrize(
    ("source", "problem"), [("~nobody-here/a", "home"), ("a\0b", "null byte"), ("x" * 300, "too long")]
)
def test_a_source_that_cannot_be_a_path_is_refused(copy, source, problem):
    with pytest.raises(StageError, match=rf"download\.source .*{problem}"):
        copy(source)
