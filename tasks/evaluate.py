"""Compare the samples with real images."""

import json

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from contract.params import read_params
from contract.paths import METRICS
from tasks.gpus import hold_slots
from tasks.run_page import show
from tasks.stage import run_stage


@task(name="evaluate")
def evaluate() -> None:
    """Compute the distances, and show them on the run page."""
    with hold_slots(read_params().reference.num_processes) as gpus:
        run_stage("evaluate", gpus)
    show("the metrics", show_metrics, get_run_logger())


def show_metrics() -> None:
    """Show the figures as a table, one figure a row."""
    rows = [{"metric": name, "value": value} for name, value in json.loads(METRICS.read_text()).items()]
    create_table_artifact(rows, key="metrics", description="Distances to real images")
