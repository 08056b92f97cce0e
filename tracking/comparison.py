"""Put runs side by side: their metrics, the parameters that differ, the best run first."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from contract.addresses import mlflow_address
from ddpm.files import atomic_path
from tracking.search import NAME, to_records

COMPARED_METRICS = ("fd", "precision", "recall", "memorised_share")
"""Metrics shown after the kernel distance; their names in MLflow go on with that of the feature extractor."""


def compare_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per run, the best first: id, name, status, metrics, and the parameters that differ between runs.

    Args:
        runs: as `tracking.search` gives them.
    """
    differing = [name for name in map(str, runs) if name.startswith("params.") and runs[name].nunique() > 1]
    rows = [
        {"run": run["run_id"], "name": run[NAME], "status": run["status"]}
        | select_metrics(read_metrics(run), str(run.get("params.reference.extractor")))
        | {name.removeprefix("params."): run[name] for name in differing}
        for run in to_records(runs)
    ]
    return rank(pd.DataFrame(rows))


def read_metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics among the fields of a run."""
    metrics = {name.removeprefix("metrics."): value for name, value in run.items() if name.startswith("metrics.")}
    return {name: value for name, value in metrics.items() if pd.notna(value)}


def select_metrics(metrics: Mapping[str, float], extractor: str) -> dict[str, float]:
    """Return the metrics to compare by: the kernel distance with its interval, the others, and the last loss."""
    kid = f"kid_{extractor}"
    names = [kid, f"{kid}_low", f"{kid}_high", *(f"{name}_{extractor}" for name in COMPARED_METRICS), "loss"]
    return {name: metrics[name] for name in names if name in metrics}


def rank(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by the kernel distance that most of them have, the least first; numbered from 1, no empty column.

    Rows without that metric come last, equal ones keep their order.
    """
    kids = [name for name in map(str, table) if name.startswith("kid_") and not name.endswith(("_low", "_high"))]
    if kids:
        headline = max(kids, key=lambda name: table[name].count())
        table = table.sort_values(headline, kind="stable", na_position="last")
    return table.set_index(pd.RangeIndex(1, len(table) + 1, name="rank")).dropna(axis="columns", how="all")


def format_table(table: pd.DataFrame) -> str:
    """Return text for the terminal: a column per run, as many side by side as its width allows."""
    shown = table.assign(run=table["run"].str[:8]) if "run" in table else table
    width = shutil.get_terminal_size().columns
    return shown.T.to_string(line_width=width, float_format=lambda value: f"{value:.4g}", na_rep="–")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write the table as CSV, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, lineterminator="\n")


def compare_page(runs: pd.DataFrame) -> str:
    """Return the address of the page on which MLflow puts these runs side by side."""
    ids, experiments = _as_query(runs["run_id"]), _as_query(sorted(set(runs["experiment_id"])))
    return f"{mlflow_address()}/#/compare-runs?runs={ids}&experiments={experiments}"


def charts_page(runs: pd.DataFrame) -> str:
    """Return the address of the page on which MLflow shows losses, metrics and image grids of these runs together."""
    ids = ", ".join(f"'{run_id}'" for run_id in runs["run_id"])
    chosen = quote(f"attributes.run_id IN ({ids})")
    experiment = runs["experiment_id"].iloc[0]
    return f"{mlflow_address()}/#/experiments/{experiment}/runs?searchFilter={chosen}&compareRunsMode=CHART"


def _as_query(words: Iterable[str]) -> str:
    return quote(json.dumps(list(words), separators=(",", ":")))
