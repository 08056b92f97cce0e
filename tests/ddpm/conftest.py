"""Small models, for the tests of the library."""

import random

import pytest
import torch

from ddpm import GaussianDiffusion, UNet, linear_betas
from ddpm.config import DiffusionConfig
from ddpm.published import publish_model
from ddpm.training import draw_t_and_eps
from tests.ddpm.small_networks import TINY, awake
from tests.ddpm.small_training import EXTRA, SHORT, make_images, start, train_to_the_end


@pytest.fixture(autouse=True)
def the_same_checks():
    # Of a list, the check of annotations looks at one item, chosen at random: a test that passes must pass always.
    random.seed(0)


@pytest.fixture
def awake_unet():
    """A tiny network whose zero-initialised layers are moved, so that every layer shapes its output."""
    torch.manual_seed(0)
    return awake(UNet(TINY))


@pytest.fixture
def diffusion():
    return GaussianDiffusion(linear_betas(20, 1e-4, 0.3))


@pytest.fixture
def images():
    return make_images()


@pytest.fixture
def watched(monkeypatch):
    """Collect t and eps of each step of a state, and inputs and output of each call of its network."""
    given = []
    monkeypatch.setattr(
        "ddpm.training.draw_t_and_eps", lambda *arguments: given.append(draw_t_and_eps(*arguments)) or given[-1]
    )

    def watch(state):
        inputs, outputs = [], []
        state.model.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments))
        state.model.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
        return given, inputs, outputs

    return watch


@pytest.fixture
def trained():
    return train_to_the_end(start(SHORT), SHORT)


@pytest.fixture
def trained_with_extra_averages():
    return train_to_the_end(start(EXTRA), EXTRA)


@pytest.fixture
def model_folder(tmp_path, trained):
    """A published model."""
    publish_model(tmp_path / "model", trained, DiffusionConfig(num_timesteps=10), image_size=8)
    return tmp_path / "model"


@pytest.fixture
def full_disk():
    """Has no space for a checkpoint until the function given is called."""

    def write(_tensors, file, _metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm.checkpoint.save_file", write)
        yield patch.undo
