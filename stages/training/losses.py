"""The losses of a training: logged at intervals, kept in checkpoints, written as a table."""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from ddpm.training import StepEvent
from ddpm.training_step import NUM_QUARTILES
from stages.runtime.outputs import write_table
from stages.training.experiment import Experiment, Recording
from tracking.runs import Tracker

_QUARTILES = [f"loss_t_quartile_{number}" for number in range(1, NUM_QUARTILES + 1)]


class LossLog:
    """Sums of the losses on the device, read at intervals only, since reading waits for the device."""

    def __init__(self, experiment: Experiment, tracker: Tracker, bar: "tqdm[Any]") -> None:
        self._experiment, self._tracker, self._bar = experiment, tracker, bar
        self._sums = torch.tensor(experiment.recording.sums, device=experiment.device)
        self._since = time.monotonic(), experiment.state.step

    def add(self, event: StepEvent) -> None:
        """Add a step without waiting for it."""
        self._sums += torch.cat([event.loss[None], event.quartile_loss_sums, event.quartile_counts])
        self._experiment.recording.num_summed += 1
        self._bar.update(self._experiment.params.batch_size)

    def write(self, event: StepEvent) -> None:
        """Log the means since the last row.

        Raises:
            NotFiniteError: a loss or gradient is not finite.
        """
        params, recording = self._experiment.params, self._experiment.recording
        self._experiment.state.check_finite(params)
        losses = compute_means(self._sums.tolist(), recording.num_summed)
        losses |= {"learning_rate": event.learning_rate, "num_images_seen": float(event.num_images_seen)}
        now, (before, step) = time.monotonic(), self._since
        speed = (event.step - step) * params.batch_size / (now - before)
        self._since = now, event.step
        watched = {"images_per_second": speed, "gradient_norm": float(event.gradient_norm)}
        self._tracker.record_metrics(losses | watched, event.step)
        self._bar.set_postfix(loss=f"{losses['loss']:.4f}", refresh=False)
        row = {"step": float(event.step)} | losses
        if event.step % params.log_every == 0:
            recording.losses.append(row)
            recording.last_losses, recording.num_summed = None, 0
            self._sums.zero_()
        else:
            recording.last_losses = row

    def keep(self) -> None:
        """Copy the sums into the recording, for the next checkpoint."""
        self._experiment.recording.sums = self._sums.tolist()


def compute_means(sums: list[float], num_steps: int) -> dict[str, float]:
    """Return the mean loss of the steps, and of the images in each quartile of t that had any."""
    loss, by_quartile, counts = sums[0], sums[1 : 1 + NUM_QUARTILES], sums[1 + NUM_QUARTILES :]
    quartiles = zip(_QUARTILES, by_quartile, counts, strict=True)
    return {"loss": loss / num_steps} | {name: total / count for name, total, count in quartiles if count}


def write_losses(recording: Recording, path: Path) -> None:
    """Write the table of losses as CSV."""
    rows = [*recording.losses, *([recording.last_losses] if recording.last_losses else [])]
    columns = ["step", "loss", "learning_rate", "num_images_seen", *_QUARTILES]
    table = pd.DataFrame(rows, columns=columns).astype({"step": int, "num_images_seen": int})
    write_table(path, table)
