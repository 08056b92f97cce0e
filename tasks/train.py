"""Train the network."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from contract.params import read_params
from contract.paths import LOSSES, MODEL
from tasks.gpus import hold_slots
from tasks.run_page import show, show_mlflow_run
from tasks.stage import run_stage

MAX_ROWS = 40
"""Maximum rows of the table of losses."""


@task(name="train")
def train() -> None:
    """Train the network; show its progress, its MLflow run, its samples as they are drawn, and its losses."""
    with hold_slots(read_params().train.num_processes) as gpus:
        page = run_stage("train", gpus)
    logger = get_run_logger()
    if not page.has_linked_run:
        show("the MLflow run", link_recorded_run, logger)
    show("the losses", show_losses, logger)


def link_recorded_run() -> None:
    """Link the run that made the model, where there was nothing to train and so none was opened now."""
    run = json.loads((MODEL / "run.json").read_text())
    if run["mlflow_run_id"]:
        show_mlflow_run(run["mlflow_run_id"], run["mlflow_experiment_id"])


def show_losses() -> None:
    """Show the losses as a table."""
    create_table_artifact(thin_losses(LOSSES), key="losses", description="Mean losses up to each step")


def thin_losses(path: Path) -> list[dict[str, Any]]:
    """Return rows of build/losses.csv, evenly thinned; the first and the last are among them."""
    losses = pd.read_csv(path)
    num_shown = min(MAX_ROWS, len(losses))
    shown = losses.iloc[[round(i * (len(losses) - 1) / max(1, num_shown - 1)) for i in range(num_shown)]]
    return [{str(name): value for name, value in row.items()} for row in shown.round(6).to_dict("records")]
