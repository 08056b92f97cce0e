"""Record an MLflow run of a training on another machine."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.gpu.weights import PartsError, list_files, read_index
from contract.params import read_params
from contract.sections import as_plain
from ddpm.files import atomic_path
from tracking.runs import open_run

PROFILE = "flowers102"


def require_setting(folders: Sequence[Path]) -> None:
    """Make sure that params.yaml, from which the run takes its parameters, holds the setting of the training.

    Raises:
        PartsError: it holds another experiment.
    """
    params, index = read_params(), read_index(list_files(folders))
    here = as_plain(params.train.unet) | {"image_size": params.preprocess.image_size}
    there = index["unet"] | {"image_size": index["image_size"]}
    differing = [name for name, value in here.items() if value != there[name]]
    if params.profile != PROFILE or differing:
        raise PartsError(
            f"params.yaml holds the profile {params.profile!r}"
            + (f", which differs from the training in {', '.join(differing)}" if differing else "")
            + f": put {PROFILE} in force and prepare its dataset first, by `cp profiles/{PROFILE}.yaml params.yaml` "
            "and `dvc repro preprocess`"
        )


def track(model: Path, folders: Sequence[Path]) -> None:
    """Open a run with the losses and the report of the training, and note its id beside the model."""
    files = list_files(folders)
    with open_run(read_params()) as tracker:
        if "losses.csv" in files:
            for _, row in pd.read_csv(files["losses.csv"]).set_index("step", drop=False).iterrows():
                metrics = {str(name): float(value) for name, value in row.drop("step").dropna().items()}
                tracker.record_metrics(metrics, int(row["step"]))
        for name in ("report.json", "losses.csv", "log.txt"):
            if name in files:
                tracker.record_file(files[name], "training")
        run = {"mlflow_run_id": tracker.run_id, "mlflow_experiment_id": tracker.experiment_id}
    with atomic_path(model / "run.json") as temporary:
        temporary.write_text(json.dumps(run) + "\n")
