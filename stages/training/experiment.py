"""An experiment as the train stage works with it, and the record that it keeps beside its weights."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from contract.paths import CHECKPOINTS, PREVIEWS
from contract.sections import TrainParams
from ddpm.checkpoint import fingerprint_of
from ddpm.classes import ImageClass
from ddpm.data import TrainingImages
from ddpm.devices import prepare_best_device
from ddpm.distributed import world_size
from ddpm.training_state import TrainingState
from ddpm.training_step import NUM_QUARTILES
from ddpm.unet import UNet
from stages.datasets.labels import digest_labels, label_images
from stages.datasets.prepared import all_images, dataset_summary, positions_of
from stages.training.identity import digest_images, identify


@dataclass
class Recording:
    """Record of a training beside its weights; each checkpoint contains it."""

    mlflow: dict[str, str] = field(default_factory=dict)
    """mlflow_run_id and mlflow_experiment_id"""
    losses: list[dict[str, float]] = field(default_factory=list)
    """one row per logged step"""
    last_losses: dict[str, float] | None = None
    """row of the last step, if log_every does not divide it; a longer training does not have it"""
    sums: list[float] = field(default_factory=lambda: [0.0] * (1 + 2 * NUM_QUARTILES))
    """sums over the steps since the last row: of the losses, and by quartile of t of the images' losses and counts"""
    num_summed: int = 0
    """number of those steps"""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """one row per evaluated step"""


@dataclass
class Experiment:
    """State, data and settings of one training."""

    params: TrainParams
    image_size: int
    device: torch.device
    state: TrainingState
    images: TrainingImages
    classes: tuple[ImageClass, ...]
    """classes by label; empty, if the network learns no classes"""
    identity: dict[str, Any]
    """all that a training must have in common with this one to continue from its checkpoints"""
    recording: Recording = field(default_factory=Recording)
    checkpoints: Path = CHECKPOINTS
    """folder of the checkpoints of all experiments"""
    previews: Path = PREVIEWS
    """folder of the samples that are drawn meanwhile"""

    @property
    def folder(self) -> Path:
        """Folder of this experiment's checkpoints."""
        return self.checkpoints / fingerprint_of(self.identity)[:16]


def prepare_experiment(params: TrainParams) -> Experiment:
    """Return the experiment before its first step."""
    summary, device = dataset_summary(), prepare_best_device()
    torch.manual_seed(params.seed)
    images, positions = all_images(), positions_of(params.splits)
    labels, classes = label_images(positions) if params.class_conditional else (None, ())
    unet = UNet(params.unet.configure(len(classes) or None)).to(device)
    return Experiment(
        params=params,
        image_size=summary["image_size"],
        device=device,
        state=TrainingState.start(unet, params),
        images=TrainingImages(
            images,
            params.batch_size,
            params.seed,
            params.random_flips,
            device=device,
            positions=positions,
            labels=labels,
        ),
        classes=classes,
        identity=identify(params, digest_images(images, positions), digest_labels(labels, positions)),
    )


def describe_experiment(experiment: Experiment) -> str:
    """Describe in one line what is about to be trained, and on what."""
    num_parameters = sum(parameter.numel() for parameter in experiment.state.model.parameters())
    images, num_processes = experiment.images, world_size()
    place = "" if images.is_resident else ", streamed from the CPU's memory"
    processes = f" by {num_processes} processes" if num_processes > 1 else ""
    return (
        f"{num_parameters:,} parameters, {len(images)} images{place}, "
        f"{experiment.params.num_steps} steps of {images.batch_size} on {experiment.device}{processes}"
    )
