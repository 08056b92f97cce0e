"""The samples that a training draws while it goes on: in grids, for MLflow and as files."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from contract.paths import PREVIEWS
from ddpm.diffusion import build_diffusion
from ddpm.guidance import guided, labels_in_turn
from ddpm.images import class_grid, to_pixels
from ddpm.samplers import ImageNoise, sample
from stages.training import grids
from stages.training.experiment import prepare_experiment
from stages.training.previews import NUM_KEPT, show_samples, write_preview

CLASSES = {"train.class_conditional": True, "train.num_grid_images": 7}


@pytest.fixture
def prepare(place, make_params):
    """Makes an experiment whose averaged weights are no longer the initial ones."""

    def run(changes=None):
        experiment = prepare_experiment(make_params(changes).train)
        move(experiment.state.ema.module)
        return experiment

    return run


@torch.no_grad()
def move(network):
    for parameter in network.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))


def test_a_grid_shows_the_averaged_weights_by_the_same_noise(prepare):
    experiment = prepare()
    first = grids.draw_grid(experiment)
    torch.rand(5)
    move(experiment.state.model)
    assert (grids.draw_grid(experiment) == first).all()
    move(experiment.state.ema.module)
    assert (grids.draw_grid(experiment) != first).any()


@pytest.mark.parametrize(("num_processes", "first"), [(1, 0), (2, 3)])
def test_a_grid_shows_the_classes_in_turn(prepare, in_each_process, num_processes, first):
    # The second of two processes draws images 3 to 6, the first of which is again of the first class.
    experiment, numbers = prepare(CLASSES), range(first, 7)
    model = guided(experiment.state.ema.module, labels_in_turn(range(3), numbers))
    images = sample("ddim", model, build_diffusion(experiment.params.diffusion), ImageNoise(3, numbers, (3, 16, 16)), 3)
    expected = class_grid(to_pixels(images), ["01", "nan", "rose"], scale=6)
    *_, drawn = in_each_process(grids, num_processes, lambda: grids.draw_grid(experiment))
    assert drawn.shape == expected.shape
    assert (np.abs(drawn.astype(int) - expected) <= 1).all()  # by rounding


def picture(height, width):
    return np.full((height, width, 3), 7, np.uint8)


@pytest.mark.parametrize("is_first", [True, False])
def test_samples_go_to_mlflow_and_the_first_process_announces_a_file(folder, notes, capsys, monkeypatch, is_first):
    monkeypatch.setattr("stages.training.previews.is_first", lambda: is_first)
    show_samples(notes, picture(8, 8), 250, PREVIEWS)
    assert [(key, step) for key, step, _ in notes.images] == [("samples", 250)]
    path = PREVIEWS / "step_000000250.png"
    assert path.exists() is (str(path) in capsys.readouterr().out) is is_first


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(20, 20, (400, 400)), (100, 50, (200, 400)), (500, 700, (700, 500)), (4000, 2000, (500, 1000))],
)
def test_small_pictures_are_enlarged_and_large_ones_reduced(folder, height, width, size):
    with Image.open(write_preview(picture(height, width), 1, PREVIEWS)) as image:
        assert image.size == size and np.unique(np.asarray(image)).tolist() == [7]


def test_the_newest_previews_are_kept(folder):
    for time, step in enumerate((900, 1000, 1, 2, 3)):  # another training came first
        os.utime(write_preview(picture(8, 8), step, PREVIEWS), ns=(time, time))
    assert sorted(path.name for path in PREVIEWS.iterdir()) == [f"step_00000000{step}.png" for step in (1, 2, 3)]
    assert NUM_KEPT == 3
