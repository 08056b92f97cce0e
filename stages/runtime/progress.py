"""One progress bar for all stages, and lines beside it."""

import sys
from typing import Any

from tqdm import tqdm

from ddpm.distributed import is_first


def print_beside_bar(text: str) -> None:
    """A line on standard output, which leaves a bar that moves meanwhile in one piece."""
    tqdm.write(text)
    sys.stdout.flush()


def progress_bar(description: str, total: int | None, unit: str, initial: int = 0) -> "tqdm[Any]":
    """A bar with rate and time left on standard error; through a pipe it speaks less often.

    The first of several processes shows it. Without a `total` it counts alone.
    """
    return tqdm(
        disable=not is_first(),
        total=total,
        initial=initial,
        desc=description,
        unit=unit if unit == "B" else f" {unit}",  # MB, but M images
        unit_scale=True,
        dynamic_ncols=True,
        smoothing=0.05,
        mininterval=0.2 if sys.stderr.isatty() else 1.0,
    )
