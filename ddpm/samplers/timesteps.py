"""The choice of the time steps that a sampler visits, with alphas_cumprod there."""

import torch

from ddpm.diffusion import GaussianDiffusion


def trailing_timesteps(num_timesteps: int, num_sampling_steps: int) -> list[int]:
    """Return evenly spaced time steps from T-1 down; the finished image follows the last of them.

    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2, "trailing": the first step
    starts at T-1, where the image is noise, and all gaps are equal up to rounding.

    Args:
        num_timesteps: T.
        num_sampling_steps: number of time steps to visit, in 1 … T.

    Returns:
        `num_sampling_steps` numbers in 0 … T-1, falling, the first T-1.

    Raises:
        ValueError: `num_sampling_steps` lies outside 1 … T.
    """
    if not 1 <= num_sampling_steps <= num_timesteps:
        raise ValueError(f"num_sampling_steps must lie in 1 … {num_timesteps}, got {num_sampling_steps}")
    return [round(num_timesteps - i * num_timesteps / num_sampling_steps) - 1 for i in range(num_sampling_steps)]


def visit(diffusion: GaussianDiffusion, num_sampling_steps: int) -> tuple[list[int], list[float]]:
    """Return the trailing time steps and alphas_cumprod at each, read from the device in one transfer.

    Raises:
        ValueError: `num_sampling_steps` lies outside 1 … T.
    """
    timesteps = trailing_timesteps(diffusion.num_timesteps, num_sampling_steps)
    return timesteps, diffusion.alphas_cumprod[torch.tensor(timesteps, device=diffusion.betas.device)].tolist()
