"""Publishing what a training has learnt."""

import json
from pathlib import Path

from ddpm.files import atomic_path
from ddpm.published import publish_model
from stages.training.evaluation import publish_best
from stages.training.experiment import Experiment


def publish(experiment: Experiment, folder: Path) -> None:
    """Write the weights with their configuration, the MLflow run, the splits trained on, and any evaluations."""
    params, recording = experiment.params, experiment.recording
    publish_model(
        folder,
        experiment.state,
        experiment.params.diffusion,
        experiment.image_size,
        experiment.classes,
        params.label_dropout,
    )
    for name, content in (("run.json", recording.mlflow), ("trained_on.json", {"train_splits": params.splits})):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(json.dumps(content) + "\n")
    if params.evaluate_every:
        publish_best(experiment.folder, recording.evaluations, folder)
