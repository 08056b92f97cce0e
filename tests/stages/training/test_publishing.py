"""The model that a training leaves: its weights, classes, MLflow run and splits."""

import json
import shutil
from pathlib import Path

import pandas as pd
import torch

from ddpm.published import load_model
from stages.training.experiment import prepare_experiment
from tests.small_experiment import CLASSES

MODEL = Path("build/model")
CONDITIONAL = {"train.class_conditional": True, "train.label_dropout": 0.3}


def test_the_model_can_be_loaded_and_names_its_run_and_splits(train):
    train()
    assert json.loads((MODEL / "run.json").read_text()) == {"mlflow_run_id": "", "mlflow_experiment_id": ""}
    assert json.loads((MODEL / "trained_on.json").read_text()) == {"train_splits": ["train"]}
    model = load_model(MODEL)
    assert model.image_size == 16 and model.diffusion.num_timesteps == 20 and model.classes == ()
    raw, averaged = load_model(MODEL, "raw").unet.state_dict(), model.unet.state_dict()
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


def test_only_the_chosen_splits_are_learnt_from(train, make_params):
    assert len(prepare_experiment(make_params().train).images) == 20
    assert len(prepare_experiment(make_params({"train.splits": ["train", "valid", "test"]}).train).images) == 35
    assert train({"train.splits": ["valid"]})["raw.safetensors"] != train()["raw.safetensors"]


def test_the_model_knows_the_classes_of_the_dataset(train, capsys):
    train(CONDITIONAL)
    model = load_model(MODEL)
    assert model.classes == CLASSES and model.unet.config.num_classes == 3
    # Other names of the same classes are published without a step.
    index = Path("build/dataset/index.csv")
    index.write_text(index.read_text().replace("rose", "tulip"))
    shutil.rmtree(MODEL)
    train(CONDITIONAL)
    assert "nothing is left to train" in capsys.readouterr().out
    assert load_model(MODEL).classes[2].name == "tulip"


def test_each_image_has_the_label_of_its_class(place, make_params):
    images = prepare_experiment(make_params(CONDITIONAL | {"train.splits": ["valid", "test"]}).train).images
    index = pd.read_csv("build/dataset/index.csv")
    numbers = index.loc[index["split"] != "train", "class_number"].to_numpy()
    for step in range(4):
        labels = [CLASSES[label].number for label in images.batch_labels(step).tolist()]
        assert labels == numbers[images.indices(step)].tolist()
