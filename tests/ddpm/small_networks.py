"""Inputs and networks that several tests share."""

import torch

from ddpm import UNetConfig

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
