"""Compare the samples with real images."""

import json
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from contract.params import read_params
from tasks.gpu import gpu_slots
from tasks.run_page import show
from tasks.stage import run_stage

METRICS = Path("build/metrics.json")


@task(name="evaluate")
def evaluate() -> None:
    """Compute the distances, and show them on the run page."""
    with gpu_slots(read_params().reference.num_processes) as cards:
        run_stage("evaluate", cards)
    show("the metrics", show_metrics, get_run_logger())


def show_metrics() -> None:
    """The figures as a table."""
    create_table_artifact(metrics_table(METRICS), key="metrics", description="Distances to real images")


def metrics_table(path: Path) -> list[dict[str, Any]]:
    """A row a figure."""
    return [{"metric": name, "value": value} for name, value in json.loads(path.read_text()).items()]
