"""Rank the trials of a sweep by their metrics, and show the table on the sweep's page, in a file and in the log."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.logging import get_run_logger

from contract.environment import is_tracked
from flows.fan_out import Outcome
from tasks.run_page import show
from tracking.comparison import charts_page, compare_page, format_table, rank, read_metrics, select_metrics, write_csv
from tracking.search import FLOW_RUN_ID, join_runs, to_records

TABLES = Path("build/sweeps")
"""Folder with one CSV per sweep; not a DVC output."""

Records: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Values that belong to each trial, by its name."""


def show_ranking(sweep: str, outcomes: Sequence[Outcome]) -> None:
    """Rank the trials, and show the table; servers that do not answer leave gaps in it, and take nothing else."""
    logger = get_run_logger()
    metrics = {outcome.trial.name: read_trial_metrics(outcome) for outcome in outcomes}
    runs = find_runs(sweep, outcomes, metrics)
    table = rank_trials(outcomes, runs, metrics)
    pages = {}
    if runs:
        found = pd.DataFrame(list(runs.values()))
        pages = {"charts and image grids": charts_page(found), "side by side": compare_page(found)}
    path = TABLES / f"{sweep}.csv"
    logger.info("Sweep %s, complete in %s:\n%s", sweep, path, format_table(table.drop(columns="why", errors="ignore")))
    for name, address in pages.items():
        logger.info("MLflow, %s: %s", name, address)
    show("the ranking", lambda: _create_artifact(sweep, table, pages), logger)
    write_csv(table, path)


def read_trial_metrics(outcome: Outcome) -> dict[str, Any]:
    """Return the metrics that a trial's page shows, and the id of the MLflow run that holds them."""
    if not outcome.state.is_completed() or outcome.flow_run_id is None:
        return {}
    chosen = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[outcome.flow_run_id]), key=ArtifactFilterKey(any_=["metrics"])
    )
    try:
        with get_client(sync_client=True) as client:
            tables = client.read_artifacts(artifact_filter=chosen)
        return {row["metric"]: row["value"] for table in tables[:1] for row in json.loads(str(table.data))}
    except Exception as error:  # hours of work must not be lost for one answer
        get_run_logger().warning("The metrics of %s cannot be read from its page: %r", outcome.trial.name, error)
        return {}


def find_runs(sweep: str, outcomes: Sequence[Outcome], metrics: Records) -> Records:
    """Return the MLflow run of each trial; a trial that ended before its training has no run.

    A trial whose results were in DVC's cache is served by the run of an earlier sweep, which joins this one. The run of
    a failed trial names its flow run.
    """
    if not is_tracked():
        return {}
    made = {name: values["mlflow_run_id"] for name, values in metrics.items() if values.get("mlflow_run_id")}
    try:
        runs = to_records(join_runs(set(made.values()), sweep))
    except Exception as error:  # as above
        get_run_logger().error("MLflow cannot be asked for the runs: %s", error)
        return {}
    by_id = {run["run_id"]: run for run in runs}
    by_flow_run = {run.get(FLOW_RUN_ID): run for run in runs}
    found = {
        outcome.trial.name: by_id.get(made.get(outcome.trial.name)) or by_flow_run.get(str(outcome.flow_run_id))
        for outcome in outcomes
    }
    return {name: run for name, run in found.items() if run}


def rank_trials(outcomes: Sequence[Outcome], runs: Records, metrics: Records) -> pd.DataFrame:
    """Return a row per trial, the best first: metrics, varied parameters, state and MLflow run; those that failed last.

    The metrics are those of the trial's own table and of its MLflow run, which also knows the last loss.
    """
    rows = []
    for outcome in outcomes:
        trial, run = outcome.trial, runs.get(outcome.trial.name, {})
        row: dict[str, Any] = {"trial": trial.name, "state": outcome.state.name}
        if outcome.state.is_completed():
            known = {**metrics.get(trial.name, {}), **read_metrics(run)}
            row |= select_metrics(known, trial.params.reference.extractor)
        row |= {name: str(value) for name, value in trial.varied.items()}
        rows.append(row | {"run": run.get("run_id"), "why": outcome.why or None})
    table = pd.DataFrame(rows)
    last = ["run", "why"]
    return rank(table[[*table.columns.drop(last), *last]])


def _create_artifact(sweep: str, table: pd.DataFrame, pages: Mapping[str, str]) -> None:
    links = ", ".join(f"[{name}]({address})" for name, address in pages.items())
    create_table_artifact(
        json.loads(table.reset_index().to_json(orient="records", double_precision=15)),
        key="ranking",
        description=f"Sweep {sweep}, the best first. MLflow: {links}" if links else f"Sweep {sweep}: no run in MLflow",
    )
