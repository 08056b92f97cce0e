"""Small models and given noise, for the tests of the library."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm import GaussianDiffusion, ImageNoise, TrainingImages, TrainingState, UNet, linear_betas
from ddpm.config import DiffusionConfig
from ddpm.published import publish_model
from tests.ddpm.small_networks import TINY, awake
from tests.ddpm.small_training import CONFIG, EXTRA, SHORT, train_to_the_end


@pytest.fixture
def tiny_config():
    return TINY


@pytest.fixture
def awake_unet(tiny_config):
    """A tiny network whose zero-initialised layers are moved, so that every layer shapes its output."""
    torch.manual_seed(0)
    return awake(UNet(tiny_config))


class GivenNoise(ImageNoise):
    """The given tensors, one per draw; counts the draws."""

    def __init__(self, draws):
        self.draws = list(draws)
        self.num_draws = 0

    def draw(self):
        if self.num_draws == len(self.draws):
            raise AssertionError(f"more than the expected {len(self.draws)} draws of noise")
        self.num_draws += 1
        return self.draws[self.num_draws - 1]


@pytest.fixture
def given_noise():
    return GivenNoise


class Operations(TorchDispatchMode):
    """Names of the torch operations inside the block, and shapes of their results."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.shapes = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.names.append(operation.overloadpacket.__name__)
        self.shapes.append(getattr(result, "shape", None))
        return result


@pytest.fixture
def operations():
    return Operations()


@pytest.fixture
def bent_model():
    """A nonlinear stand-in for a network: deterministic, elementwise, different at each time step."""

    def predict(x_t, t):
        return torch.tanh(1.5 * x_t + torch.sin(t.to(x_t.dtype)).reshape(-1, 1, 1, 1))

    return predict


@pytest.fixture
def diffusion():
    return GaussianDiffusion(linear_betas(20, 1e-4, 0.3))


@pytest.fixture
def images():
    pixels = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TrainingImages(pixels, batch_size=4, seed=1)


@pytest.fixture
def start(tiny_config):
    """Make the state before the first step, always the same."""

    def make(config=CONFIG, **changes):
        torch.manual_seed(0)
        return TrainingState.start(UNet(dataclasses.replace(tiny_config, **changes)), config)

    return make


@pytest.fixture
def fresh(tiny_config):
    """Make a state whose initial weights come from the seed."""

    def make(seed, config=SHORT):
        torch.manual_seed(seed)
        return TrainingState.start(UNet(tiny_config), config)

    return make


@pytest.fixture
def trained(fresh):
    return train_to_the_end(fresh(0), SHORT)


@pytest.fixture
def trained_with_extra_averages(fresh):
    return train_to_the_end(fresh(0, EXTRA), EXTRA)


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
