"""Which device the stages compute on."""

import torch

from ddpm.distributed import local_rank


def best_device() -> torch.device:
    """The GPU of this process where there is one, otherwise the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.benchmark = True  # shapes stay the same from step to step
    return torch.device("cuda", local_rank())
