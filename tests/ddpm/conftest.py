"""Small models and given noise, for the tests of the library."""

import pytest
import torch

from ddpm import ImageNoise, UNet, UNetConfig


@pytest.fixture
def tiny_config():
    return UNetConfig(widths=(8, 16), attention=(False, True), num_res_blocks=1, time_embedding_dim=8, norm_groups=4)


@pytest.fixture
def awake_unet(tiny_config):
    """A tiny network whose zero-initialised layers are moved, so that every layer shapes its output."""
    torch.manual_seed(0)
    unet = UNet(tiny_config).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return unet


class GivenNoise(ImageNoise):
    """Hands out the given tensors, one a draw, and counts them."""

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


@pytest.fixture
def bent_model():
    """A nonlinear stand-in for a network: deterministic, elementwise, different at each time step."""

    def predict(x_t, t):
        return torch.tanh(1.5 * x_t + torch.sin(t.to(x_t.dtype)).reshape(-1, 1, 1, 1))

    return predict
