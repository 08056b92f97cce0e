"""Summary of the results in the checkout, printed at the end of a run by hand."""

import json
import os
from typing import Any

from contract.addresses import LOCAL_MLFLOW, mlflow_address, tracking_server
from contract.paths import GRID, METRICS, REVERSE_PROCESS

_PARTS = ("_std", "_low", "_high", "_expected")
"""Endings of the metrics that belong to another metric."""


def summarise_results() -> str:
    """Return the places of the results, the figures, and the pages that show them."""
    metrics = json.loads(METRICS.read_text())
    figures = [
        f"    {name:42} {value:10.4f}{format_interval(metrics, name)}"
        for name, value in metrics.items()
        if isinstance(value, float) and not name.endswith(_PARTS)
    ]
    return "\n".join(
        [
            "",
            f"  pictures    {GRID}, {REVERSE_PROCESS}",
            f"  metrics     {METRICS}",
            *figures,
            f"  MLflow run  {metrics['mlflow_run_id'] or 'none (tracking is off)'}",
            "",
            *list_pages(),
        ]
    )


def list_pages() -> list[str]:
    """Return where to look at runs: on the servers in force, or the commands that start them."""
    if tracking_server():
        lines = [f"  compare runs:           {mlflow_address()}"]
    else:
        lines = [f"  make mlflow     compare runs:           {LOCAL_MLFLOW}"]
    if server := os.environ.get("PREFECT_API_URL"):
        return [*lines, f"  look at the flow runs:  {server.removesuffix('/api')}"]
    return [*lines, "  make prefect    look at the flow runs:  http://127.0.0.1:4200"]


def format_interval(metrics: dict[str, Any], name: str) -> str:
    """Return the confidence interval of a metric in words; empty where it has none."""
    if f"{name}_low" not in metrics:
        return ""
    return f"  (95 %: {metrics[f'{name}_low']:.4f} … {metrics[f'{name}_high']:.4f})"
