"""Train the network."""

import json
import os
from pathlib import Path

from prefect import task
from prefect.artifacts import create_link_artifact

from tasks.gpu import gpu_slot
from tasks.stage import run_stage

RUN_FILE = Path("build/model/run.json")
LOCAL_MLFLOW = "http://127.0.0.1:5000"


@task(name="train")
def train() -> None:
    """Train the network, and link its MLflow run."""
    with gpu_slot():
        run_stage("train")
    if link := mlflow_link():
        create_link_artifact(link=link, link_text="MLflow run", key="mlflow-run", description="`make mlflow` serves it")


def mlflow_link() -> str | None:
    """The address of the MLflow run's page: on the tracking server, or where `make mlflow` serves the local one."""
    run = json.loads(RUN_FILE.read_text())
    if not run["mlflow_run_id"]:
        return None
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    base = server.rstrip("/") if server.startswith("http") else LOCAL_MLFLOW
    return f"{base}/#/experiments/{run['mlflow_experiment_id']}/runs/{run['mlflow_run_id']}"
