"""The seven tasks, one for each stage: what is tried again, what waits for GPUs, and what the run page shows."""

from pathlib import Path
from typing import Any

import pandas as pd
from prefect import Task, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger

from contract.documents import read_result
from contract.params import read_params
from contract.paths import GRID, LOSSES, METRICS, MODEL_RUN
from tasks.gpus import find_slots, hold_slots
from tasks.run_page import StagePage, embed, show, show_mlflow_run
from tasks.stage import StageFailedError, is_up_to_date, run_stage

MAX_ROWS = 40
"""Maximum rows of the table of losses."""


def is_worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether another try may help: a wrong path, a refusal (404) and wrong bytes stay wrong."""
    return isinstance(state.data, StageFailedError) and state.data.is_transient


@task(name="download", retries=2, retry_delay_seconds=[5, 20], retry_condition_fn=is_worth_retrying)
def download() -> None:
    """Fetch and verify the raw dataset. The network is here, and so are the retries."""
    run_stage("download")


@task(name="preprocess")
def preprocess() -> None:
    """Crop and resize the raw images into the prepared dataset."""
    run_stage("preprocess")


@task(name="reference")
def reference() -> None:
    """Extract the features of real images, which samples will be compared with."""
    compute("reference", read_params().reference.num_processes)


@task(name="train")
def train() -> None:
    """Train the network; show its progress, its MLflow run, its samples as they are drawn, and its losses."""
    params = read_params()
    find_slots(params.sample.num_processes, "sample.num_processes")  # its own task would say so after the training
    page = compute("train", params.train.num_processes)
    if not page.has_linked_run:
        show("the MLflow run", link_recorded_run, get_run_logger())
    show("the losses", show_losses, get_run_logger())


@task(name="sample")
def sample() -> None:
    """Draw images, and show their grid on the run page."""
    compute("sample", read_params().sample.num_processes)
    show("the samples", show_samples, get_run_logger())


@task(name="evaluate")
def evaluate() -> None:
    """Compute the distances, and show them on the run page."""
    compute("evaluate", read_params().reference.num_processes)
    show("the metrics", show_metrics, get_run_logger())


@task(name="register")
def register() -> None:
    """Register the model in MLflow."""
    run_stage("register")


def compute(stage: str, num_processes: int) -> StagePage:
    """Bring a stage up to date on GPUs of its own; one that is up to date waits for none."""
    with hold_slots(num_processes, lambda: not is_up_to_date(stage)) as gpus:
        return run_stage(stage, gpus)


def link_recorded_run() -> None:
    """Link the run that made the model, where there was nothing to train and so none was opened now."""
    run = read_result(MODEL_RUN)
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


def show_samples() -> None:
    """Show the grid of samples."""
    create_markdown_artifact(embed(GRID), key="samples", description="Samples of the trained model")


def show_metrics() -> None:
    """Show the metrics as a table, a row each."""
    rows = [{"metric": name, "value": value} for name, value in read_result(METRICS).items()]
    create_table_artifact(rows, key="metrics", description="Distances to real images")
