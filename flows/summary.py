"""Summary of the results in the checkout, printed at the end of a run by hand."""

import os

from contract.addresses import mlflow_address, tracking_server
from contract.documents import read_result
from contract.paths import GRID, METRICS, REVERSE_PROCESS

_PARTS = ("_std", "_low", "_high", "_expected")
"""Endings of the metrics that belong to another metric."""


def summarise_results() -> str:
    """Return the places of the results, the metrics, and the pages that show them."""
    metrics = read_result(METRICS)
    lines = []
    for name, value in metrics.items():
        if isinstance(value, float) and not name.endswith(_PARTS):
            low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
            interval = "" if low is None else f"  (95 %: {low:.4f} … {high:.4f})"
            lines.append(f"    {name:42} {value:10.4f}{interval}")
    return "\n".join(
        [
            "",
            f"  pictures    {GRID}, {REVERSE_PROCESS}",
            f"  metrics     {METRICS}",
            *lines,
            f"  MLflow run  {metrics['mlflow_run_id'] or 'none (tracking is off)'}",
            "",
            *list_pages(),
        ]
    )


def list_pages() -> list[str]:
    """Return where to look at runs: on the servers in force, or the commands that start them."""
    prefect = os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    return [
        f"  {'' if tracking_server() else 'make mlflow     '}compare runs:           {mlflow_address()}",
        f"  {'' if prefect else 'make prefect    '}look at the flow runs:  {prefect or 'http://127.0.0.1:4200'}",
    ]
