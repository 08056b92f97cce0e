"""Evaluation during training: the kernel distance of a few samples every so many steps, and the best weights by it.

It watches: the images are drawn from their own noise, so that a training learns the same with it and without.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from contract.errors import StageError
from contract.sections import MIN_COMPARED_IMAGES, TrainParams
from ddpm.distributed import is_first
from ddpm.features import ExtractorName, FeatureExtractor, build_extractor
from ddpm.files import atomic_path
from stages.datasets.prepared import all_images, positions_of
from stages.evaluation.extraction import at_random, features_of
from tracking.runs import Tracker

EXTRACTOR: ExtractorName = "efficientnet_lite0"
"""Always: it needs no file and no network, and the curve is compared with itself alone."""

FIGURE = f"kid_{EXTRACTOR}"

BEST = "best.safetensors"

_BATCH_SIZE = 64


@dataclass
class TrainingEvaluation:
    """Evaluates averaged weights, and keeps the best."""

    wanted: TrainParams
    folder: Path
    """of the training's checkpoints; the best weights are kept there, too"""
    rows: list[dict[str, Any]]
    """the evaluations so far, to which each new one is added; they go into checkpoints, and come back from them.
    Those on other images are dropped, since figures on other images cannot be compared."""
    draw: Callable[[int], Tensor]
    """so many images of the current averaged weights, from the same noise each time"""
    tracker: Tracker
    """gets the figures as a curve"""
    device: torch.device
    """where features are extracted"""

    def __post_init__(self) -> None:
        if self.wanted.evaluate_every is None:
            return
        num_images = len(self._positions)
        if num_images < MIN_COMPARED_IMAGES:
            raise StageError(
                f"split {self.wanted.evaluate_split} holds {num_images} images, and an evaluation needs "
                f"{MIN_COMPARED_IMAGES}: name another by train.evaluate_split, or set train.evaluate_every to null"
            )
        self.rows[:] = [row for row in self.rows if {**row, **self._compared} == row]

    def is_due(self, step: int, is_last: bool = False) -> bool:
        """Whether the weights of this step are to be evaluated: at the intervals, and at the end of a training."""
        every = self.wanted.evaluate_every
        if every is None or (self.rows and self.rows[-1]["step"] == step):
            return False
        return is_last or step % every == 0

    def add(self, step: int, averaged: nn.Module) -> None:
        """Evaluate the averaged weights of this step; keep them if they are the best so far."""
        from ddpm.metrics import kernel_distance

        num_images = self._compared["num_images"]
        fake = self._features(self.draw(num_images))
        # The whole sets, not subsets: of two kinds of images as few as these every pair counts.
        kernel = kernel_distance(self._real, fake, num_subsets=1, subset_size=num_images)
        figures = {FIGURE: kernel.mean, f"{FIGURE}_low": kernel.low, f"{FIGURE}_high": kernel.high}
        self.rows.append({"step": step} | figures | self._compared)
        self.tracker.record_metrics({f"training_{name}": value for name, value in figures.items()}, step)
        if is_first() and best_of(self.rows) == step:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in averaged.state_dict().items()}
            with atomic_path(self.folder / BEST) as temporary:
                save_file(tensors, temporary, {"step": str(step)})

    @cached_property
    def _extractor(self) -> FeatureExtractor:
        with torch.random.fork_rng(devices=[]):  # it draws weights before it loads its own
            return build_extractor(EXTRACTOR, self.device)

    @cached_property
    def _positions(self) -> Tensor:
        chosen = positions_of([self.wanted.evaluate_split])
        return at_random(chosen, self.wanted.evaluate_num_images, self.wanted.seed)

    @property
    def _compared(self) -> dict[str, Any]:
        """On what a figure depends beside the weights: of as many samples as real images."""
        return {"split": self.wanted.evaluate_split, "num_images": len(self._positions)}

    @cached_property
    def _real(self) -> Tensor:
        return self._features(all_images(), self._positions)

    def _features(self, images: Tensor, positions: Tensor | None = None) -> Tensor:
        positions = torch.arange(len(images)) if positions is None else positions
        return features_of(self._extractor, images, positions, _BATCH_SIZE, self.device)


def best_of(rows: list[dict[str, Any]]) -> int:
    """The step of the least kernel distance; the first of equal ones."""
    return int(min(rows, key=lambda row: row[FIGURE])["step"])


def publish_best(folder: Path, rows: list[dict[str, Any]], target: Path) -> None:
    """Put the best weights, and the table of all evaluations, into the model's folder.

    The weights stay away, with a message, where those kept are of another step: a longer training of the same
    experiment went on from here, or other steps were evaluated before an interruption.
    """
    with atomic_path(target / "evaluations.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")
    step, kept = best_of(rows), kept_step(folder / BEST)
    if kept != step:
        found = "nothing readable" if kept is None else f"step {kept}"
        print(
            f"train: warning: the best weights, of step {step}, are no longer kept: {folder / BEST} holds {found}",
            flush=True,
        )
        return
    with atomic_path(target / BEST) as temporary:
        shutil.copyfile(folder / BEST, temporary)


def kept_step(path: Path) -> int | None:
    """Of which step these best weights are; None where they are missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.metadata()["step"])
    except (OSError, SafetensorError):
        return None
