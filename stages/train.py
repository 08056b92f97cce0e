"""Train the network, going on from the newest checkpoint of the same experiment, and publish its weights."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from contract.errors import StageError
from contract.params import Params
from contract.paths import CHECKPOINTS, LOSSES, MODEL, PREVIEWS
from contract.sections import TrainParams
from ddpm.checkpoint import (
    CheckpointError,
    DiffusionConfig,
    checkpoint_path,
    fingerprint_of,
    list_checkpoints,
    load_checkpoint,
    publish_model,
    step_of,
)
from ddpm.checkpoint_writer import CheckpointWriter
from ddpm.classes import ImageClass, labels_in_turn
from ddpm.data import TrainingImages
from ddpm.devices import drawing, prepare_best_device
from ddpm.diffusion import NoiseModel
from ddpm.distributed import Vote, collected, is_first, share, wait_for_all, world_size
from ddpm.files import atomic_path
from ddpm.guidance import guided
from ddpm.images import class_grid, enlargement, grid, to_pixels
from ddpm.samplers import ImageNoise, sample
from ddpm.training import StepEvent, train
from ddpm.training_state import NotFiniteError, TrainingConfig, TrainingState, learning_rate_at
from ddpm.training_step import NUM_QUARTILES
from ddpm.unet import UNet, UNetConfig
from stages.datasets import prepared
from stages.datasets.labels import labelled, labels_digest
from stages.datasets.prepared import all_images, dataset_summary, positions_of
from stages.runtime.alone import work_alone_in
from stages.runtime.interruption import Interrupted, defer_interruption
from stages.runtime.progress import progress_bar
from stages.runtime.runner import run_stage
from stages.training.evaluation import TrainingEvaluation, publish_best
from stages.training.previews import show_samples
from tracking.lineage import code_digest
from tracking.runs import Tracker, opened_run

# What changes how a training is watched, not what it learns.
_WATCHING = frozenset({
    "log_every", "sample_every", "num_grid_images", "grid_sampling_steps", "checkpoint_every",
    "keep_checkpoints", "keep_checkpoints_every", "evaluate_every", "evaluate_num_images", "evaluate_split",
    "num_processes",
})  # fmt: skip

# Likewise modules: those that evaluate what is learnt.
_WATCHING_MODULES = frozenset({"ddpm.features", "ddpm.metrics"})

_DIGEST_IMAGES = 4096
"""Read at once when the images are digested: they may be more than the memory holds."""


@dataclass
class Recording:
    """What a training has to tell beside its weights; each checkpoint holds it too."""

    mlflow: dict[str, str] = field(default_factory=dict)
    """mlflow_run_id and mlflow_experiment_id"""
    losses: list[dict[str, float]] = field(default_factory=list)
    """a row at each logged step"""
    sums: list[float] = field(default_factory=lambda: [0.0] * (1 + 2 * NUM_QUARTILES))
    """over the steps since the last row: of the losses, and by quartile of t of the images' losses and their counts"""
    num_summed: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """a row at each evaluated step"""


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
    classes: tuple[ImageClass, ...]
    """by label; none, where the network is not told of any"""
    identity: dict[str, Any]
    """what another training must share to go on from this one's checkpoints"""
    recording: Recording
    checkpoints: Path = CHECKPOINTS
    """of all experiments"""
    previews: Path = PREVIEWS
    """where samples lie as files while it goes on"""

    @property
    def folder(self) -> Path:
        """Where its checkpoints lie."""
        return self.checkpoints / fingerprint_of(self.identity)[:16]


def main(params: Params) -> None:
    """build/model/ and build/losses.csv."""
    experiment = prepare(params.train)
    with work_alone_in(experiment.folder, "train"):
        resume(experiment)
        say(started_line(experiment))
        with opened_run(params, experiment.recording.mlflow.get("mlflow_run_id")) as tracker:
            experiment.recording.mlflow = {
                "mlflow_run_id": tracker.run_id,
                "mlflow_experiment_id": tracker.experiment_id,
            }
            learn(experiment, tracker)
            if is_first():
                publish(experiment)
                tracker.record_file(LOSSES, "training")


def say(text: str) -> None:
    """To the terminal, by the first process."""
    if is_first():
        print(f"train: {text}", flush=True)


def started_line(experiment: Experiment) -> str:
    """What is about to be trained, on what."""
    num_parameters = sum(parameter.numel() for parameter in experiment.state.model.parameters())
    place = "" if experiment.images.is_resident else ", streamed from the CPU's memory"
    processes = f" by {world_size()} processes" if world_size() > 1 else ""
    return (
        f"{num_parameters:,} parameters, {len(experiment.images)} images{place}, "
        f"{experiment.config.num_steps} steps of {experiment.images.batch_size} on {experiment.device}{processes}"
    )


def prepare(wanted: TrainParams) -> Experiment:
    """The experiment before its first step."""
    summary, device = dataset_summary(), prepare_best_device()
    config = training_config(wanted)
    torch.manual_seed(wanted.seed)
    images, positions = all_images(), positions_of(wanted.splits)
    labels, classes = labelled(positions) if wanted.class_conditional else (None, ())
    unet_config = UNetConfig(**wanted.unet.model_dump(), num_classes=len(classes) or None)
    return Experiment(
        wanted=wanted,
        config=config,
        diffusion=DiffusionConfig(**wanted.diffusion.model_dump()),
        image_size=summary["image_size"],
        device=device,
        state=TrainingState.start(UNet(unet_config).to(device), config),
        images=TrainingImages(
            images,
            wanted.batch_size,
            wanted.seed,
            wanted.random_flips,
            device=device,
            positions=positions,
            labels=labels,
        ),
        classes=classes,
        identity=identity_of(wanted, images_digest(images, positions), labels_digest(labels, positions)),
        recording=Recording(),
    )


def training_config(wanted: TrainParams) -> TrainingConfig:
    """The part of the parameters that the training loop reads."""
    names = set(TrainingConfig.__dataclass_fields__)
    return TrainingConfig(**{name: value for name, value in wanted.model_dump().items() if name in names})


def images_digest(images: Tensor, positions: Tensor) -> str:
    """Of the very pixels that are trained on: the same array may be split in other ways."""
    digest = hashlib.md5(usedforsecurity=False)
    for part in torch.split(positions, _DIGEST_IMAGES):
        digest.update(images[part].contiguous().numpy().data)
    return digest.hexdigest()


def identity_of(wanted: TrainParams, images_md5: str, labels_md5: str) -> dict[str, Any]:
    """What two trainings must share for one to go on from the other's checkpoint: parameters, data and code.

    A constant rate does not depend on the number of steps, so that a finished training can be carried further.
    """
    parameters = {name: value for name, value in wanted.model_dump(mode="json").items() if name not in _WATCHING}
    if wanted.rate_schedule == "constant":
        del parameters["num_steps"]
    if not wanted.class_conditional:  # there are no labels to drop
        del parameters["label_dropout"]
    data = {"images_md5": images_md5, "labels_md5": labels_md5}
    code = code_digest(Path(__file__), Path(prepared.__file__), without=_WATCHING_MODULES)
    return parameters | data | {"code": code}


def resume(experiment: Experiment) -> None:
    """Go on from the newest checkpoint that can be read, if there is one.

    Raises:
        StageError: several processes do not find the same one, or are not of the same experiment.
    """
    if is_first():
        for left_over in experiment.folder.glob(".*.tmp.safetensors"):  # of a process killed while saving
            left_over.unlink()
    for path in reversed(list_checkpoints(experiment.folder)):
        if step_of(path) > experiment.config.num_steps:
            continue
        try:
            notes = load_checkpoint(path, experiment.state, experiment.identity)
        except CheckpointError as error:
            say(f"{error}; going back to the one before it")
            continue
        experiment.recording = Recording(**notes)
        if experiment.state.step == experiment.config.num_steps:
            say(f"{path} holds this very training, finished; nothing is left to train")
        else:
            say(f"going on from {path}")
        break
    _ensure_agreement(experiment)


def _ensure_agreement(experiment: Experiment) -> None:
    identity = int(fingerprint_of(experiment.identity)[:15], 16)
    together = collected(torch.tensor([[experiment.state.step, identity]])).tolist()
    if any(identity != together[0][1] for _, identity in together):
        raise StageError("the processes disagree on parameters, data or code: all machines need the same checkout")
    steps = [step for step, _ in together]
    if len(set(steps)) > 1:
        raise StageError(
            f"the processes would go on from different steps, {steps}: {experiment.folder} must be the same "
            "folder on all machines"
        )


def learn(experiment: Experiment, tracker: Tracker) -> None:
    """Train to the last step; log, draw and save at their intervals.

    Raises:
        Interrupted: a signal came; a checkpoint holds what was done.
        StageError: a loss or gradient is not finite.
    """
    wanted, state, num_steps = experiment.wanted, experiment.state, experiment.config.num_steps
    if state.step == 0:
        # Where MLflow's slider starts: without it, the grid of a page just opened is empty.
        show_samples(tracker, drawn_grid(experiment), 0, experiment.previews)
    evaluation = TrainingEvaluation(
        wanted,
        experiment.folder,
        experiment.recording.evaluations,
        lambda count: drawn(experiment, count),
        tracker,
        experiment.device,
    )
    total, done, vote = num_steps * wanted.batch_size, state.step * wanted.batch_size, Vote()
    writer = CheckpointWriter(
        experiment.folder, experiment.identity, wanted.keep_checkpoints, wanted.keep_checkpoints_every
    )
    with (
        not_finite_explained(experiment),
        progress_bar("train", total, "images", initial=done) as bar,
        defer_interruption() as interruption,
        writer,
    ):
        if done and evaluation.is_due(state.step):  # cut between checkpoint and evaluation
            evaluation.add(state.step, state.ema.module)
        losses = LossLog(experiment, tracker, bar)
        for event in train(state, experiment.images, experiment.diffusion.build(), experiment.config):
            is_last = event.step == num_steps
            losses.add(event)
            if is_last or event.step % wanted.log_every == 0:
                losses.write(event)
            if is_last or event.step % wanted.sample_every == 0:
                state.check_finite(experiment.config)
                show_samples(tracker, drawn_grid(experiment), event.step, experiment.previews)
            signal_name = interruption()
            is_interrupted = vote.any(signal_name is not None)
            is_evaluated = evaluation.is_due(event.step, is_last)
            if is_last or is_interrupted or is_evaluated or event.step % wanted.checkpoint_every == 0:
                losses.keep()
                save(experiment, writer)
            if is_interrupted and not is_last:
                writer.wait()  # the message promises the file
                wait_for_all()  # the first to leave would have the others killed, one of which still saves
                how = signal_name or "a signal to another process"
                kept_in = checkpoint_path(experiment.folder, event.step)
                raise Interrupted(f"{how} at step {event.step}, kept in {kept_in}; run it again to go on")
            if is_evaluated:
                writer.wait()  # an evaluation may take longer than an interruption may
                evaluation.add(event.step, state.ema.module)
        if evaluation.is_due(state.step, is_last=True):  # finished before it was to be evaluated
            evaluation.add(state.step, state.ema.module)


class LossLog:
    """Sums the losses on the device, and reads them at intervals alone."""

    def __init__(self, experiment: Experiment, tracker: Tracker, bar: "tqdm[Any]") -> None:
        self._experiment, self._tracker, self._bar = experiment, tracker, bar
        self._sums = torch.tensor(experiment.recording.sums, device=experiment.device)
        self._since = time.monotonic(), experiment.state.step

    def add(self, event: StepEvent) -> None:
        """Take a step in, without waiting for it."""
        self._sums += torch.cat([event.loss[None], event.quartile_loss_sums, event.quartile_counts])
        self._experiment.recording.num_summed += 1
        self._bar.update(self._experiment.wanted.batch_size)

    def write(self, event: StepEvent) -> None:
        """Log the means since the last time.

        Raises:
            NotFiniteError: a loss or gradient is not finite.
        """
        experiment, recording = self._experiment, self._experiment.recording
        experiment.state.check_finite(experiment.config)
        row = loss_row(experiment, self._sums.tolist())
        now, (before, step) = time.monotonic(), self._since
        rate = (event.step - step) * experiment.wanted.batch_size / (now - before)
        self._since = now, event.step
        more = {"images_per_second": rate, "gradient_norm": float(event.gradient_norm)}
        self._tracker.record_metrics({name: row[name] for name in row if name != "step"} | more, event.step)
        self._bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        if event.step % experiment.wanted.log_every == 0:
            recording.losses.append(row)
            recording.num_summed = 0
            self._sums.zero_()

    def keep(self) -> None:
        """Bring the sums where checkpoints are made of."""
        self._experiment.recording.sums = self._sums.tolist()


@contextmanager
def not_finite_explained(experiment: Experiment) -> Iterator[None]:
    """Turn NotFiniteError of the block into a StageError that names the last good checkpoint and what to do."""
    try:
        yield
    except NotFiniteError as error:
        wait_for_all()  # the first process has just written its last checkpoint, which the others are to find
        kept = [path for path in list_checkpoints(experiment.folder) if step_of(path) < error.step]
        last_good = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written before it"
        raise StageError(
            f"{error}; {last_good}; lower train.learning_rate, raise train.warmup_steps, or set train.gradient_clip"
        ) from None


def loss_row(experiment: Experiment, sums: list[float]) -> dict[str, float]:
    """What is logged at a step: mean losses since the last row, the whole and by quartile of t, and the rate."""
    step = experiment.state.step
    loss, by_quartile, counts = sums[0], sums[1 : 1 + NUM_QUARTILES], sums[1 + NUM_QUARTILES :]
    row = {
        "step": float(step),
        "loss": loss / experiment.recording.num_summed,
        "learning_rate": learning_rate_at(step - 1, experiment.config),
        "num_images_seen": float(step * experiment.wanted.batch_size),
    }
    for number, (quartile, count) in enumerate(zip(by_quartile, counts, strict=True), start=1):
        if count:
            row[f"loss_t_quartile_{number}"] = quartile / count
    return row


def drawn_grid(experiment: Experiment) -> NDArray[np.uint8]:
    """Samples of the averaged weights as one picture, with the names of their classes where the network knows any."""
    pixels = drawn(experiment, experiment.wanted.num_grid_images)
    if experiment.classes:
        names = [each.name for each in experiment.classes]
        return np.asarray(class_grid(pixels, names, enlargement(experiment.image_size)))
    return np.asarray(grid(pixels))


def drawn(experiment: Experiment, count: int) -> Tensor:
    """Samples of the averaged weights, from the same noise each time, of all classes in turn where it knows any.

    Each process draws its share, and gets all.
    """
    wanted, size, device = experiment.wanted, experiment.image_size, experiment.device
    numbers, batches = range(count)[share(count)], [torch.empty(0, 3, size, size, dtype=torch.uint8)]
    diffusion, batch_size = experiment.diffusion.build().to(device), max(wanted.batch_size, wanted.num_grid_images)
    for start in range(0, len(numbers), batch_size):
        batch = numbers[start : start + batch_size]
        noise = ImageNoise(wanted.seed, batch, (3, size, size), device)
        network = experiment.state.ema.module
        model: NoiseModel = network
        if experiment.classes:
            model = guided(network, labels_in_turn(range(len(experiment.classes)), batch).to(device))
        with drawing(network, wanted.precision, device):
            images = sample("ddim", model, diffusion, noise, wanted.grid_sampling_steps)
        batches.append(to_pixels(images).cpu())
    return collected(torch.cat(batches))


def save(experiment: Experiment, writer: CheckpointWriter) -> None:
    """Have a checkpoint of the current step written, by the first process.

    Raises:
        NotFiniteError: a loss or gradient so far is not finite, and nothing after it is worth keeping.
    """
    experiment.state.check_finite(experiment.config)
    if is_first():
        writer.save(experiment.state, asdict(experiment.recording))


def publish(experiment: Experiment) -> None:
    """The weights with their configuration, the MLflow run's id, what they learnt from, and the table of losses."""
    publish_model(
        MODEL,
        experiment.state,
        experiment.diffusion,
        experiment.image_size,
        experiment.classes,
        experiment.config.label_dropout,
    )
    with atomic_path(MODEL / "run.json") as temporary:
        temporary.write_text(json.dumps(experiment.recording.mlflow) + "\n")
    with atomic_path(MODEL / "trained_on.json") as temporary:
        temporary.write_text(json.dumps({"train_splits": experiment.wanted.splits}) + "\n")
    if experiment.wanted.evaluate_every:
        publish_best(experiment.folder, experiment.recording.evaluations, MODEL)
    rows = list(experiment.recording.losses)
    if experiment.recording.num_summed:  # the last steps, where log_every does not divide their number
        rows.append(loss_row(experiment, experiment.recording.sums))
    with atomic_path(LOSSES) as temporary:
        quartiles = [f"loss_t_quartile_{number}" for number in range(1, NUM_QUARTILES + 1)]
        columns = ["step", "loss", "learning_rate", "num_images_seen", *quartiles]
        losses = pd.DataFrame(rows, columns=columns).astype({"step": int, "num_images_seen": int})
        losses.to_csv(temporary, index=False, lineterminator="\n")


if __name__ == "__main__":
    run_stage("train", main, lambda params: params.train.num_processes)
