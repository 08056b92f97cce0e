"""The shapes in the annotations are checked while the tests run, and cost nothing where jaxtyping is missing."""

import runpy
import sys

import jaxtyping
import pytest
import torch

from ddpm import UNet, shapes
from tests.ddpm.small_networks import TINY


def test_arguments_of_a_wrong_shape_or_dtype_raise(diffusion):
    x_0, t = torch.zeros(2, 3, 4, 4), torch.tensor([1, 2])
    diffusion.q_sample(x_0, t, x_0)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 't'"):
        diffusion.q_sample(x_0, torch.tensor([1]), x_0)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'eps'"):  # which would be broadcast
        diffusion.q_sample(x_0, t, torch.zeros(2, 1, 4, 4))
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 't'"):
        UNet(TINY)(x_0, torch.zeros(2))


@pytest.mark.usefixtures("without_shape_checks")
def test_the_checks_can_be_left_out(diffusion):
    x_t = diffusion.q_sample(torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]), torch.ones(2, 1, 4, 4))
    assert x_t.shape == (2, 3, 4, 4)


def test_without_jaxtyping_an_annotation_means_the_plain_array_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxtyping", None)  # an import of it now fails
    names = runpy.run_path(shapes.__file__)
    for name in shapes.__all__:
        assert names[name][torch.Tensor, "batch channels"] is torch.Tensor
