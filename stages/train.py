"""Train the network, going on from the newest checkpoint of the same experiment, and publish its weights."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.checkpoint import (
    CheckpointError,
    DiffusionConfig,
    list_checkpoints,
    load_checkpoint,
    publish_model,
    save_checkpoint,
)
from ddpm.data import TrainingImages
from ddpm.files import atomic_path
from ddpm.images import grid, to_pixels
from ddpm.samplers import ImageNoise, sample
from ddpm.training import StepEvent, TrainingConfig, TrainingState, train
from ddpm.unet import UNet, UNetConfig
from stages import prepared
from stages.device import best_device
from stages.lineage import code_digest
from stages.params import Params, TrainParams
from stages.paths import CHECKPOINTS, LOSSES, MODEL
from stages.prepared import dataset_summary, images_of
from stages.progress import progress_bar
from stages.runner import Interrupted, interruption_deferred, run_stage
from stages.tracking import Tracker, opened_run

# What changes how a training is watched, not what it learns.
_WATCHING = frozenset(
    {"log_every", "sample_every", "num_grid_images", "grid_sampling_steps", "checkpoint_every", "keep_checkpoints"}
)


@dataclass
class Recording:
    """What a training has to tell beside its weights; each checkpoint holds it too."""

    mlflow: dict[str, str] = field(default_factory=dict)
    """mlflow_run_id and mlflow_experiment_id"""
    losses: list[dict[str, float]] = field(default_factory=list)
    """a row at each logged step"""
    loss_sum: float = 0.0
    """of the steps since the last row"""
    num_summed: int = 0


@dataclass
class Experiment:
    """All that one training works with."""

    wanted: TrainParams
    config: TrainingConfig
    diffusion: DiffusionConfig
    image_size: int
    device: torch.device
    state: TrainingState
    images: TrainingImages
    fingerprint: str
    recording: Recording

    @property
    def folder(self) -> Path:
        """Where its checkpoints lie."""
        return CHECKPOINTS / self.fingerprint[:16]


def main(params: Params) -> None:
    """build/model/ and build/losses.csv."""
    experiment = prepare(params.train)
    resume(experiment)
    num_parameters = sum(parameter.numel() for parameter in experiment.state.model.parameters())
    print(
        f"train: {num_parameters:,} parameters, {len(experiment.images.images)} images, "
        f"{experiment.config.num_steps} steps of {experiment.images.batch_size} on {experiment.device}",
        flush=True,
    )
    with opened_run(params, experiment.recording.mlflow.get("mlflow_run_id")) as tracker:
        experiment.recording.mlflow = {
            "mlflow_run_id": tracker.run_id,
            "mlflow_experiment_id": tracker.experiment_id,
        }
        learn(experiment, tracker)
        publish(experiment)
        tracker.record_file(LOSSES, "training")


def prepare(wanted: TrainParams) -> Experiment:
    """The experiment before its first step."""
    summary, device = dataset_summary(), best_device()
    config = training_config(wanted)
    torch.manual_seed(wanted.seed)
    images = images_of(wanted.splits).to(device)
    return Experiment(
        wanted=wanted,
        config=config,
        diffusion=DiffusionConfig(**wanted.diffusion.model_dump()),
        image_size=summary["image_size"],
        device=device,
        state=TrainingState.start(UNet(UNetConfig(**wanted.unet.model_dump())).to(device), config),
        images=TrainingImages(images, wanted.batch_size, wanted.seed, wanted.random_flips),
        fingerprint=fingerprint(wanted, images_digest(images)),
        recording=Recording(),
    )


def training_config(wanted: TrainParams) -> TrainingConfig:
    """The part of the parameters that the training loop reads."""
    names = set(TrainingConfig.__dataclass_fields__)
    return TrainingConfig(**{name: value for name, value in wanted.model_dump().items() if name in names})


def images_digest(images: Tensor) -> str:
    """Of the very pixels that are trained on: the same array may be split in other ways."""
    return hashlib.md5(images.cpu().numpy().tobytes(), usedforsecurity=False).hexdigest()


def fingerprint(wanted: TrainParams, images_md5: str) -> str:
    """What two trainings must share for one to go on from the other's checkpoint: parameters, data and code.

    A constant rate does not depend on the number of steps, so that a finished training can be carried further.
    """
    experiment = {name: value for name, value in wanted.model_dump(mode="json").items() if name not in _WATCHING}
    if wanted.rate_schedule == "constant":
        del experiment["num_steps"]
    experiment |= {"images_md5": images_md5, "code": code_digest(Path(__file__), Path(prepared.__file__))}
    return hashlib.sha256(json.dumps(experiment, sort_keys=True).encode()).hexdigest()


def resume(experiment: Experiment) -> None:
    """Go on from the newest checkpoint that can be read, if there is one."""
    for path in reversed(list_checkpoints(experiment.folder)):
        if int(path.stem.removeprefix("step_")) > experiment.config.num_steps:
            continue
        try:
            notes = load_checkpoint(path, experiment.state, experiment.fingerprint)
        except CheckpointError as error:
            print(f"train: {error}", flush=True)
            continue
        experiment.recording = Recording(**notes)
        if experiment.state.step == experiment.config.num_steps:
            print(f"train: {path} holds this very training, finished; nothing is left to train", flush=True)
        else:
            print(f"train: going on from {path}", flush=True)
        return


def learn(experiment: Experiment, tracker: Tracker) -> None:
    """Train to the last step; log, draw and save at their intervals.

    Raises:
        Interrupted: a signal came; a checkpoint holds what was done.
    """
    wanted, state, num_steps = experiment.wanted, experiment.state, experiment.config.num_steps
    total, done = num_steps * wanted.batch_size, state.step * wanted.batch_size
    if state.step == 0:
        # Where MLflow's slider starts: without it, the grid of a page just opened is empty.
        tracker.record_image("samples", drawn_grid(experiment), 0)
    started, first = time.monotonic(), state.step
    with progress_bar("train", total, "images", initial=done) as bar, interruption_deferred() as interruption:
        loss_sum = torch.tensor(experiment.recording.loss_sum, device=experiment.device)
        for event in train(state, experiment.images, experiment.diffusion.build(), experiment.config):
            loss_sum += event.loss
            experiment.recording.num_summed += 1
            bar.update(wanted.batch_size)
            is_last = event.step == num_steps
            if is_last or event.step % wanted.log_every == 0:
                row = loss_row(event, float(loss_sum) / experiment.recording.num_summed)
                experiment.recording.losses.append(row)
                loss_sum.zero_()
                experiment.recording.num_summed = 0
                rate = (event.step - first) * wanted.batch_size / (time.monotonic() - started)
                measured = {name: value for name, value in row.items() if name != "step"}
                tracker.record_metrics(measured | {"images_per_second": rate}, event.step)
                bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            if is_last or event.step % wanted.sample_every == 0:
                tracker.record_image("samples", drawn_grid(experiment), event.step)
            signal_name = interruption()
            if is_last or signal_name or event.step % wanted.checkpoint_every == 0:
                experiment.recording.loss_sum = float(loss_sum)
                path = save(experiment)
            if signal_name and not is_last:
                raise Interrupted(f"{signal_name} at step {event.step}, kept in {path}; run it again to go on")


def loss_row(event: StepEvent, loss: float) -> dict[str, float]:
    """What is logged at a step: the mean loss since the last row, and the rate."""
    return {
        "step": event.step,
        "loss": loss,
        "learning_rate": event.learning_rate,
        "num_images_seen": event.num_images_seen,
    }


def drawn_grid(experiment: Experiment) -> NDArray[np.uint8]:
    """Samples of the averaged weights, from the same noise each time."""
    wanted, size = experiment.wanted, experiment.image_size
    noise = ImageNoise(wanted.seed, range(wanted.num_grid_images), (3, size, size), experiment.device)
    diffusion = experiment.diffusion.build().to(experiment.device)
    drawn = sample("ddim", experiment.state.ema.module, diffusion, noise, wanted.grid_sampling_steps)
    return np.asarray(grid(to_pixels(drawn).cpu()))


def save(experiment: Experiment) -> Path:
    """A checkpoint of the current step."""
    return save_checkpoint(
        experiment.folder,
        experiment.state,
        experiment.fingerprint,
        asdict(experiment.recording),
        experiment.wanted.keep_checkpoints,
    )


def publish(experiment: Experiment) -> None:
    """The weights with their configuration, the MLflow run's id, and the table of losses."""
    publish_model(MODEL, experiment.state, experiment.diffusion, experiment.image_size)
    with atomic_path(MODEL / "run.json") as temporary:
        temporary.write_text(json.dumps(experiment.recording.mlflow) + "\n")
    with atomic_path(LOSSES) as temporary:
        losses = pd.DataFrame(experiment.recording.losses).astype({"step": int, "num_images_seen": int})
        losses.to_csv(temporary, index=False, lineterminator="\n")


if __name__ == "__main__":
    run_stage("train", main)
