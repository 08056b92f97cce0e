"""Evaluation during training: the kernel distance of a few samples at intervals, and the best weights by it.

The samples come from their own noise, so a training learns the same with evaluation and without.
"""

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpm.checkpoint import to_row_major
from ddpm.distributed import is_first
from ddpm.features import ExtractorName, FeatureExtractor, build_extractor
from ddpm.files import atomic_path
from stages.datasets.prepared import all_images, positions_of
from stages.evaluation.extraction import choose_at_random, extract_together
from stages.runtime.outputs import write_table
from stages.runtime.reporting import warn
from stages.training.experiment import Experiment
from stages.training.grids import draw_samples
from tracking.runs import Tracker

EXTRACTOR: ExtractorName = "efficientnet_lite0"
"""Extractor of all trainings: it needs no download, and the curve is compared only with itself."""

METRIC = f"kid_{EXTRACTOR}"
"""Name of the kernel distance, by which the best weights are chosen."""

BEST = "best.safetensors"

_BATCH_SIZE = 64


class TrainingEvaluation:
    """Evaluation of an experiment's averaged weights, which keeps the best.

    Its rows are those of the experiment's recording, which checkpoints contain. Rows from an evaluation on other images
    are dropped, since their metrics cannot be compared.
    """

    def __init__(self, experiment: Experiment, tracker: Tracker) -> None:
        self._experiment, self._tracker = experiment, tracker
        self._params, self._rows = experiment.params, experiment.recording.evaluations
        if self._params.evaluate_every is None:
            return
        positions = positions_of([self._params.evaluate_split])
        self._positions = choose_at_random(positions, self._params.evaluate_num_images, self._params.seed)
        self._compared = {"split": self._params.evaluate_split, "num_images": len(self._positions)}
        self._rows[:] = [row for row in self._rows if row | self._compared == row]

    def is_due(self, step: int, is_last: bool = False) -> bool:
        """Return whether to evaluate the weights of this step: at intervals, and at the end of a training."""
        every = self._params.evaluate_every
        if every is None or (self._rows and self._rows[-1]["step"] == step):
            return False
        return is_last or step % every == 0

    def add(self, step: int) -> None:
        """Evaluate the averaged weights of this step; keep them if they are the best so far."""
        from ddpm.metrics import kernel_distance

        num_images = len(self._positions)
        fake = self._extract(draw_samples(self._experiment, num_images), torch.arange(num_images))
        # Whole sets instead of subsets: with so few images every pair counts.
        kernel = kernel_distance(self._real, fake, num_subsets=1, subset_size=num_images)
        metrics = {METRIC: kernel.mean, f"{METRIC}_low": kernel.low, f"{METRIC}_high": kernel.high}
        self._rows.append({"step": step} | metrics | self._compared)
        self._tracker.record_metrics({f"training_{name}": value for name, value in metrics.items()}, step)
        if is_first() and find_best_step(self._rows) == step:
            tensors = to_row_major(self._experiment.state.ema.module.state_dict())
            with atomic_path(self._experiment.folder / BEST) as temporary:
                save_file(tensors, temporary, {"step": str(step)})

    @cached_property
    def _extractor(self) -> FeatureExtractor:
        with torch.random.fork_rng(devices=[]):  # the extractor draws weights before it loads its own
            return build_extractor(EXTRACTOR, self._experiment.device)

    @cached_property
    def _real(self) -> Tensor:
        return self._extract(all_images(), self._positions)

    def _extract(self, images: Tensor, positions: Tensor) -> Tensor:
        return extract_together(self._extractor, images, positions, _BATCH_SIZE, self._experiment.device)


def find_best_step(rows: list[dict[str, Any]]) -> int:
    """Return the step of the least kernel distance; the first of equal ones."""
    return int(min(rows, key=lambda row: row[METRIC])["step"])


def publish_best(folder: Path, rows: list[dict[str, Any]], target: Path) -> None:
    """Write the best weights and the table of all evaluations into the model's folder.

    The weights are left out, with a warning, if the training's folder keeps those of another step: a longer training of
    the same experiment went on from here, or other steps were evaluated before an interruption.
    """
    write_table(target / "evaluations.csv", pd.DataFrame(rows))
    step, kept = find_best_step(rows), read_step(folder / BEST)
    if kept != step:
        found = "nothing readable" if kept is None else f"step {kept}"
        warn("train", f"the best weights, of step {step}, are no longer kept: {folder / BEST} holds {found}")
        return
    with atomic_path(target / BEST) as temporary:
        shutil.copyfile(folder / BEST, temporary)


def read_step(path: Path) -> int | None:
    """Return the step of these best weights; None if they are missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.metadata()["step"])
    except (OSError, SafetensorError):
        return None
