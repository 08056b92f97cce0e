"""The library as its users import it."""

import subprocess
import sys
from pathlib import Path

import ddpm

# What the library needs beyond torch and numpy, each for one of its rooms only.
OPTIONAL = ["PIL", "jaxtyping", "safetensors", "scipy", "torch_fidelity", "torchmetrics", "torchvision"]
DRAWS_A_GRID = "from ddpm.images import grid; grid(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))"


def test_all_public_names_exist():
    assert all(hasattr(ddpm, name) for name in ddpm.__all__)
    assert sorted(ddpm.__all__) == ddpm.__all__


def test_the_library_imports_and_draws_grids_with_torch_and_numpy_alone():
    # A module that is None in sys.modules cannot be imported. A fresh interpreter, since this one has them all.
    program = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL})); import ddpm, torch; {DRAWS_A_GRID}"
    root = Path(ddpm.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
