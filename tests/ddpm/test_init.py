"""The library as its users import it, and the shapes in its annotations, which are checked while the tests run."""

import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch

import ddpm
from ddpm import UNet
from tests.ddpm.small_networks import TINY

# What the library needs beyond torch and numpy, each for one of its rooms only.
OPTIONAL = ["PIL", "jaxtyping", "safetensors", "scipy", "torch_fidelity", "torchvision"]
USES_ALL = "from ddpm import *; from ddpm.images import grid; grid(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))"


def test_all_public_names_and_grids_need_torch_and_numpy_alone():
    # A module that is None in sys.modules cannot be imported. A fresh interpreter, since this one has them all.
    program = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL})); import ddpm, torch; {USES_ALL}"
    root = Path(ddpm.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
def test_the_checks_can_be_left_out():
    assert UNet(TINY)(torch.zeros(2, 3, 4, 4), torch.zeros(2)).shape == (2, 3, 4, 4)
