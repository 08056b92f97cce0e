"""What the registered model draws on request; tests/stages/test_tracking.py registers and loads it."""

import base64
import io
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ddpm import ImageNoise, guided, sample
from ddpm.checkpoint import load_model
from ddpm.images import to_pixels

STEPS = {"num_sampling_steps": 3}


@pytest.fixture
def loaded(tmp_path):
    """Loads a published model as MLflow does."""

    def load(published):
        from stages.pyfunc_model import FlowerSampler

        for name in ("config.json", "averaged.safetensors"):
            shutil.copyfile(published / name, tmp_path / name)
        sampler = FlowerSampler()
        sampler.load_context(SimpleNamespace(artifacts={"model": str(tmp_path)}))
        return sampler

    return load


def images(table):
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(word)))) for word in table["png_base64"]]


def by_hand(published, labels, seed, guidance_scale):
    model = load_model(published)
    predict = model.unet if labels is None else guided(model.unet, torch.tensor(labels), guidance_scale)
    noise = ImageNoise(seed, range(2), (3, 16, 16))
    return to_pixels(sample("ddim", predict, model.diffusion, noise, 3)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_model_that_knows_classes_draws_those_asked_for(loaded, published_conditional, guidance_scale):
    # By name, by number as text, and left out: then all in turn.
    asked = pd.DataFrame({"n": [2, 2, 2], "seed": [0, 1, 2], "class_name": ["rose", "3", None]})
    model = loaded(published_conditional)
    drawn = images(model.predict(None, asked, STEPS | {"guidance_scale": guidance_scale}))
    for row, labels in enumerate([[2, 2], [0, 0], [0, 1]]):
        expected = by_hand(published_conditional, labels, row, guidance_scale)
        np.testing.assert_array_equal(np.stack(drawn[2 * row : 2 * row + 2]), expected)


def test_without_a_class_column_either_model_draws(loaded, published, published_conditional):
    asked = pd.DataFrame({"n": [2], "seed": [0]})
    for folder, labels in ((published, None), (published_conditional, [0, 1])):
        drawn = images(loaded(folder).predict(None, asked, STEPS))
        np.testing.assert_array_equal(np.stack(drawn), by_hand(folder, labels, 0, 1.0))


def test_what_a_model_does_not_know_is_refused(loaded, published, published_conditional):
    asked = pd.DataFrame({"n": [2], "seed": [0], "class_name": ["ross"]})
    with pytest.raises(ValueError, match=r"unknown class 'ross'; did you mean rose \(8\)"):
        loaded(published_conditional).predict(None, asked, STEPS)
    with pytest.raises(ValueError, match="the model knows no classes"):
        loaded(published).predict(None, asked, STEPS)
