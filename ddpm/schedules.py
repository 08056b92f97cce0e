"""Noise schedules: the variances `betas` of the forward process.

Convention of the whole library: the time step t runs 0 … T-1 in code, so t = 0 is the paper's t = 1.
"""

import math
from typing import get_args

import torch
from torch import Tensor

from ddpm.config import ScheduleName
from ddpm.shapes import Float


def linear_betas(
    num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Float[Tensor, " num_timesteps"]:
    """Return evenly spaced variances, the published schedule.

    Ho et al. 2020, section 4: beta_1 = 1e-4 … beta_T = 0.02 for T = 1000.

    Args:
        num_timesteps: T, at least 1.
        beta_start: variance of the first step, in (0, 1).
        beta_end: variance of the last step, in [beta_start, 1).

    Returns:
        float64 variances in (0, 1), rising.

    Raises:
        ValueError: an argument lies outside its range.
    """
    _require_timesteps(num_timesteps)
    if not 0.0 < beta_start <= beta_end < 1.0:
        raise ValueError(f"need 0 < beta_start <= beta_end < 1, got beta_start={beta_start}, beta_end={beta_end}")
    return torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)


def cosine_betas(num_timesteps: int, offset: float = 0.008, max_beta: float = 0.999) -> Float[Tensor, " num_timesteps"]:
    """Return variances whose alphas_cumprod follows a squared cosine; they destroy small images more slowly.

    Nichol & Dhariwal 2021, Eq. 17: alphas_cumprod_t = f(t) / f(0), f(t) = cos((t/T + s) / (1 + s) * pi/2)^2 with
    s = `offset`; beta_t = 1 - alphas_cumprod_t / alphas_cumprod_{t-1}, at most `max_beta`.

    Args:
        num_timesteps: T, at least 1.
        offset: s, at least 0; keeps beta_t from vanishing near t = 0.
        max_beta: upper limit in (0, 1); keeps the last step from being singular.

    Returns:
        float64 variances in (0, max_beta], rising.

    Raises:
        ValueError: an argument lies outside its range.
    """
    _require_timesteps(num_timesteps)
    if offset < 0.0 or not 0.0 < max_beta < 1.0:
        raise ValueError(f"need offset >= 0 and 0 < max_beta < 1, got offset={offset}, max_beta={max_beta}")
    times = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    f = torch.cos((times + offset) / (1.0 + offset) * (math.pi / 2.0)) ** 2
    return torch.clamp(1.0 - f[1:] / f[:-1], max=max_beta)


def make_betas(
    name: ScheduleName, num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Float[Tensor, " num_timesteps"]:
    """Return the variances of the schedule called `name`; `beta_start` and `beta_end` belong to "linear".

    Raises:
        ValueError: the name is unknown, or an argument lies outside its range.
    """
    if name == "linear":
        return linear_betas(num_timesteps, beta_start, beta_end)
    if name == "cosine":
        return cosine_betas(num_timesteps)
    raise ValueError(f"unknown schedule {name!r}; choose one of {', '.join(get_args(ScheduleName))}")


def _require_timesteps(num_timesteps: int) -> None:
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps must be at least 1, got {num_timesteps}")
