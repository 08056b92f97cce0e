"""Inputs and networks that several tests share."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm import ImageNoise, UNetConfig

TINY = UNetConfig(widths=(8, 16), attention=(False, True), num_res_blocks=1, time_embedding_dim=8, norm_groups=4)

PREDICTIONS = [("eps", "epsilon"), ("v", "v_prediction"), ("x_0", "sample")]
"""Names of predictions, here and in diffusers."""

SAMPLERS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("dpm_solver++", 0.0), ("dpm_solver++", 0.5)]
"""Names of samplers, each with a value of eta."""


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def awake(network):
    """Move all weights off their start, so that no layer hides behind a zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def bent_model(x_t, t):
    """Stand in for a network: nonlinear, deterministic, elementwise, different at each time step."""
    return torch.tanh(1.5 * x_t + torch.sin(t.to(x_t.dtype)).reshape(-1, 1, 1, 1))


class GivenNoise(ImageNoise):
    """The given tensors, one per draw; counts the draws."""

    def __init__(self, draws):
        self.draws = list(draws)
        self.num_draws = 0

    def draw(self):
        self.num_draws += 1
        return self.draws[self.num_draws - 1]


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
