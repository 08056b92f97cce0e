"""Find recorded runs in MLflow, as a table with one row per run.

Its columns are MLflow's: run_id, experiment_id, status, start_time, params.NAME, metrics.NAME (the last value of each),
tags.NAME.
"""

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from contract.errors import FlowersError
from tracking.connection import connect, connect_to_read, explain_refusals, find_experiment, tracking_uri
from tracking.runs import SWEEP_TAG, join_sweep

NAME = "tags.mlflow.runName"
SWEEPS = f"tags.{SWEEP_TAG}"
FLOW_RUN_ID = "tags.prefect_flow_run_id"

MIN_PREFIX = 4
"""Minimum characters of an id that name a run, if no other id begins with them."""


def search_runs() -> pd.DataFrame:
    """Return all runs of the project, newest first.

    Raises:
        TrackingError: there is no such database, or MLflow cannot be reached.
    """
    experiment_id = find_experiment(connect_to_read())
    if experiment_id is None:
        return pd.DataFrame(columns=["run_id", "experiment_id", "status", NAME, SWEEPS])
    import mlflow

    with explain_refusals():
        runs = mlflow.search_runs([experiment_id], output_format="pandas")
    columns = [*runs.columns, *({NAME, SWEEPS} - set(runs.columns))]
    return runs.reindex(columns=columns)


def choose_runs(names: Sequence[str] = (), sweep: str | None = None, last: int | None = None) -> pd.DataFrame:
    """Return the runs of these names, then those of a sweep, then the newest ones, each once; without a choice, all.

    Raises:
        FlowersError: MLflow has no run of a name, or several, or no such sweep.
        TrackingError: MLflow cannot be reached.
    """
    runs = search_runs()
    if not names and sweep is None and last is None:
        return runs
    chosen = [find_run(name, runs) for name in names]
    if sweep is not None:
        chosen.append(runs_of_sweep(sweep, runs))
        if chosen[-1].empty:
            others = sorted({name for tag in runs[SWEEPS].dropna() for name in tag.split()})
            known = f"there are {', '.join(others)}" if others else "there are none yet"
            raise FlowersError(f"MLflow at {tracking_uri()} has no sweep {sweep!r}; {known}")
    if last is not None:
        chosen.append(runs.head(last))
    return pd.concat(chosen).drop_duplicates("run_id")


def join_runs(run_ids: Collection[str], sweep: str) -> pd.DataFrame:
    """Tag these runs as parts of a sweep, where MLflow still has them, and return all runs of the sweep.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    runs, client = search_runs(), connect()
    with explain_refusals():
        for run_id in runs["run_id"][runs["run_id"].isin(run_ids)]:
            join_sweep(client, client.get_run(run_id), sweep)
    return runs_of_sweep(sweep, search_runs())


def find_run(name: str, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the one run of this id or name, or whose id begins so.

    Raises:
        FlowersError: there is none, or more than one.
    """
    found = runs[(runs["run_id"] == name) | (runs[NAME] == name)]
    if found.empty and len(name) >= MIN_PREFIX:
        found = runs[runs["run_id"].map(lambda run_id: run_id.startswith(name)).astype(bool)]
    if len(found) > 1:
        raise FlowersError(f"{name!r} may be any of {', '.join(found['run_id'])}: name one by its id")
    if found.empty:
        newest = runs.head(5)
        known = ", ".join(f"{name} ({run_id})" for name, run_id in zip(newest[NAME], newest["run_id"], strict=True))
        raise FlowersError(
            f"MLflow at {tracking_uri()} has no run {name!r}; "
            + (f"the newest are {known}" if known else "it has no runs yet")
        )
    return found


def runs_of_sweep(sweep: str, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that name the sweep among theirs."""
    return runs[runs[SWEEPS].map(lambda tag: isinstance(tag, str) and sweep in tag.split()).astype(bool)]


def to_records(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, each by the names of its columns."""
    return [{str(name): value for name, value in row.items()} for row in runs.to_dict("records")]
