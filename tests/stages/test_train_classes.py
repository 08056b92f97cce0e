"""Training with classes: published with their names, resumed, drawn in turn, and another experiment than without."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import stages.train as module
from contract.errors import StageError
from ddpm.classes import labels_in_turn
from ddpm.guidance import guided
from ddpm.images import class_grid, to_pixels
from ddpm.published import load_model
from ddpm.samplers import ImageNoise, sample
from tests.small_experiment import CLASSES

CHECKPOINTS, MODEL = Path("build/checkpoints"), Path("build/model")
CONDITIONAL = {"train.class_conditional": True, "train.label_dropout": 0.3}


@pytest.fixture
def train(folder, dataset, make_params):
    """Trains with classes, and gives the bytes of the weights."""
    dataset()

    def run(changes=None):
        module.main(make_params(CONDITIONAL | (changes or {})))
        return {path.name: path.read_bytes() for path in MODEL.glob("*.safetensors")}

    return run


def test_the_published_model_knows_the_classes_of_the_dataset(train):
    train()
    model = load_model(MODEL)
    assert model.classes == CLASSES and model.unet.config.num_classes == 3
    assert json.loads((MODEL / "config.json").read_text())["classes"][2] == {"number": 8, "name": "rose"}


def test_each_image_has_the_label_of_its_class(train, make_params):
    experiment = module.prepare(make_params(CONDITIONAL | {"train.splits": ["valid", "test"]}).train)
    index = pd.read_csv("build/dataset/index.csv")
    numbers = index.loc[index["split"] != "train", "class_number"].to_numpy()
    for step in range(4):
        images = experiment.images.indices(step)
        told = [CLASSES[label].number for label in experiment.images.batch_labels(step).tolist()]
        assert told == numbers[images].tolist()


def test_a_resumed_training_equals_an_uninterrupted_one(train, make_params, monkeypatch):
    def stopping(experiment, writer):
        save(experiment, writer)
        if experiment.state.step == 4:
            raise StageError("stopped")

    save, expected = module.save, train()
    shutil.rmtree(CHECKPOINTS)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save", stopping)
        with pytest.raises(StageError, match="stopped"):
            train()
    assert train() == expected


def test_other_labels_of_the_same_images_are_not_resumed(train, capsys):
    train()
    index = Path("build/dataset/index.csv")
    index.write_text(index.read_text().replace("1,8,rose,train", "1,3,01,train"))
    train()
    assert "going on from" not in capsys.readouterr().out
    assert len(list(CHECKPOINTS.iterdir())) == 2


def test_other_names_of_the_same_classes_are_published_without_a_step(train, capsys):
    train()
    index = Path("build/dataset/index.csv")
    index.write_text(index.read_text().replace("rose", "tulip"))
    train()
    assert "nothing is left to train" in capsys.readouterr().out
    assert load_model(MODEL).classes[2].name == "tulip"


def test_what_the_classes_change_is_the_training_and_not_its_batches(train, make_params):
    conditional = module.prepare(make_params(CONDITIONAL).train)
    plain = module.prepare(make_params().train)
    torch.testing.assert_close(conditional.images.batch(3), plain.images.batch(3), rtol=0, atol=0)
    for name, tensor in plain.state.model.state_dict().items():
        torch.testing.assert_close(conditional.state.model.state_dict()[name], tensor, rtol=0, atol=0)
    assert plain.images.labels is None and plain.classes == () and plain.identity["labels_md5"] == ""


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_grids_of_a_training_show_the_classes_in_turn(train, make_params, in_each_process, num_processes):
    wanted = make_params(CONDITIONAL | {"train.num_grid_images": 7}).train
    experiment = module.prepare(wanted)
    with torch.no_grad():
        for parameter in experiment.state.ema.module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model = guided(experiment.state.ema.module, labels_in_turn(range(3), range(7)))
    images = sample("ddim", model, experiment.diffusion.build(), ImageNoise(3, range(7), (3, 16, 16)), 3)
    expected = class_grid(to_pixels(images), ["01", "nan", "rose"], scale=6).numpy()
    if num_processes == 1:
        drawn = module.drawn_grid(experiment)
        assert drawn.shape == expected.shape
        assert (np.abs(drawn.astype(int) - expected) <= 1).all()  # by rounding
    else:
        # The second process draws images 3 to 6, of which the first is again of the first class.
        shares = in_each_process(module, 2, lambda: module.drawn_grid(experiment))
        only = sample("ddim", guided(experiment.state.ema.module, labels_in_turn(range(3), range(3, 7))),
                      experiment.diffusion.build(), ImageNoise(3, range(3, 7), (3, 16, 16)), 3)  # fmt: skip
        own = class_grid(to_pixels(only), ["01", "nan", "rose"], scale=6).numpy()
        assert (np.abs(shares[1].astype(int) - own) <= 1).all()
