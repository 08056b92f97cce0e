"""The shapes in the annotations are checked while the tests run, and cost nothing where jaxtyping is missing."""

import runpy
import sys

import jaxtyping
import pytest
import torch

from ddpm import GaussianDiffusion, UNet, linear_betas, shapes
from ddpm.images import to_model_range


@pytest.fixture
def diffusion():
    return GaussianDiffusion(linear_betas(10))


def test_a_wrong_number_of_time_steps_raises(diffusion):
    x_0 = torch.zeros(2, 3, 4, 4)
    diffusion.q_sample(x_0, torch.tensor([1, 2]), x_0)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 't'"):
        diffusion.q_sample(x_0, torch.tensor([1]), x_0)


def test_noise_of_another_shape_raises_instead_of_broadcasting(diffusion):
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'eps'"):
        diffusion.q_sample(torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]), torch.zeros(2, 1, 4, 4))


def test_a_wrong_dtype_raises(diffusion):
    to_model_range(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'pixels'"):
        to_model_range(torch.zeros(1, 3, 4, 4))


def test_a_wrong_argument_of_a_module_raises(tiny_config):
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 't'"):
        UNet(tiny_config)(torch.zeros(2, 3, 8, 8), torch.zeros(2))


@pytest.mark.usefixtures("without_shape_checks")
def test_the_checks_can_be_left_out(diffusion):
    x_t = diffusion.q_sample(torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]), torch.ones(2, 1, 4, 4))
    assert x_t.shape == (2, 3, 4, 4)


def test_without_jaxtyping_an_annotation_means_the_plain_array_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxtyping", None)  # an import of it now fails
    names = runpy.run_path(shapes.__file__)
    for name in shapes.__all__:
        assert names[name][torch.Tensor, "batch channels"] is torch.Tensor
