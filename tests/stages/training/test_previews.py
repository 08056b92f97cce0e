"""Pictures of a training that goes on: whole, told, for the eye, and few."""

import os

import numpy as np
import pytest
from PIL import Image

from contract.paths import PREVIEWS
from ddpm import distributed
from stages.training.previews import NUM_KEPT, leave_preview, show_samples


def picture(height, width, value=7):
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def place(folder):
    return folder


def test_samples_go_to_mlflow_and_into_a_file_that_is_told(place, notes, capsys):
    show_samples(notes, picture(8, 8), 250)
    assert [(key, step) for key, step, _ in notes.images] == [("samples", 250)]
    path = PREVIEWS / "step_000000250.png"
    assert capsys.readouterr().out == f"train: samples of step 250 in {path}\n"
    with Image.open(path) as image:
        assert np.unique(np.asarray(image)).tolist() == [7]


def test_of_several_processes_the_first_alone_leaves_files(place, notes, capsys, monkeypatch):
    monkeypatch.setattr("stages.training.previews.is_first", lambda: False)
    assert distributed.is_first()
    show_samples(notes, picture(8, 8), 250)
    assert capsys.readouterr().out == "" and not PREVIEWS.exists()


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [(20, 20, (400, 400)), (100, 50, (200, 400)), (500, 700, (700, 500)), (4000, 2000, (500, 1000))],
)
def test_small_pictures_are_enlarged_and_large_ones_reduced(place, height, width, shown):
    with Image.open(leave_preview(picture(height, width), 1)) as image:
        assert image.size == shown


def test_the_newest_are_kept(place):
    for time, step in enumerate((900, 1000, 1, 2, 3)):  # another training came first
        os.utime(leave_preview(picture(8, 8), step), ns=(time, time))
    assert sorted(path.name for path in PREVIEWS.iterdir()) == [f"step_00000000{step}.png" for step in (1, 2, 3)]
    assert NUM_KEPT == 3


def test_nothing_half_written_is_left(place, monkeypatch):
    def fail(*_, **__):
        raise OSError("no room")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no room"):
        leave_preview(picture(8, 8), 1)
    assert list(PREVIEWS.iterdir()) == []
