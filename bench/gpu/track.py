"""The MLflow run of a training that happened elsewhere."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.gpu.weights import PartsError
from ddpm.files import atomic_path
from stages.params import read_params
from stages.tracking.runs import opened_run

PROFILE = "flowers102"


def require_profile() -> None:
    """Make sure that params.yaml holds the published setting, whose parameters the run is given.

    Raises:
        PartsError: it holds another experiment.
    """
    if (profile := read_params().profile) != PROFILE:
        raise PartsError(
            f"params.yaml holds the profile {profile!r}, not that of the training: put {PROFILE} in force, as by "
            f"`python -m flows.pipeline --profile {PROFILE}`, whose stages before train it needs anyway"
        )


def track(model: Path, folders: Sequence[Path]) -> None:
    """Open a run with the losses and the report of the training, and note its id beside the model."""
    files = {path.name: path for folder in folders for path in folder.iterdir()}
    with opened_run(read_params()) as tracker:
        if "losses.csv" in files:
            for _, row in pd.read_csv(files["losses.csv"]).set_index("step", drop=False).iterrows():
                figures = {str(name): float(value) for name, value in row.drop("step").dropna().items()}
                tracker.record_metrics(figures, int(row["step"]))
        for name in ("report.json", "losses.csv", "log.txt"):
            if name in files:
                tracker.record_file(files[name], "training")
        run = {"mlflow_run_id": tracker.run_id, "mlflow_experiment_id": tracker.experiment_id}
    with atomic_path(model / "run.json") as temporary:
        temporary.write_text(json.dumps(run) + "\n")
