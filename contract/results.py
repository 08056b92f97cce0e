"""Results of earlier stages that name an MLflow run."""

import json
from pathlib import Path


def read_run_id(path: Path) -> str:
    """Return the MLflow run noted in a stage's JSON result; empty, if the stage was not tracked."""
    return str(json.loads(path.read_text())["mlflow_run_id"])
