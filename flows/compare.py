"""Runs side by side, from MLflow: their figures and the parameters that differ, the best by the headline first."""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from tasks.run_page import mlflow_address

FIGURES = ("kid", "fd", "precision", "recall", "memorised_share")
"""What is shown of a run beside its loss; each name goes on with that of its feature extractor."""

RUN_COLUMNS = ["run", "name", "status"]


class CompareError(Exception):
    """Runs cannot be compared; the message says why."""


def main() -> None:
    """Print runs side by side, from MLflow: figures, and the parameters that differ."""
    arguments = _parse_arguments()
    try:
        runs = read_runs(_choice(arguments))
        if not runs:
            raise CompareError("MLflow has no runs yet; `make run` makes one")
        table = compared(runs)
        if arguments.csv:
            write_csv(table, arguments.csv)
    except (CompareError, OSError) as error:
        sys.exit(f"compare: {error}")
    print(in_columns(table))
    print(f"\nMLflow: {compare_address(runs)}")


def read_runs(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What MLflow has of the runs that `python -m tracking.search` takes these arguments to mean.

    A child process: it alone needs MLflow.

    Raises:
        CompareError: MLflow does not answer, or has no such run.
    """
    command = [sys.executable, "-m", "tracking.search", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or f"it ended with {done.returncode}"
        raise CompareError(said.removeprefix("compare: error: "))
    runs: list[dict[str, Any]] = json.loads(done.stdout)
    return runs


def compared(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row a run, the best first: its id, name and status, its figures, its parameters that differ from others'."""
    rows = [
        {"run": run["run_id"], "name": run["name"], "status": run["status"]}
        | figures(run)
        | {name: run["params"].get(name) for name in differing(one["params"] for one in runs)}
        for run in runs
    ]
    return ranked(pd.DataFrame(rows), headline(runs))


def figures(run: dict[str, Any]) -> dict[str, float]:
    """The figures to compare by: the headline with its interval, the others, and the last loss."""
    metrics, extractor = run["metrics"], extractor_of(run)
    kid = f"kid_{extractor}"
    first, *others = (f"{figure}_{extractor}" for figure in FIGURES)
    names = [first, f"{kid}_low", f"{kid}_high", *others, "loss"]
    return {name: metrics[name] for name in names if name in metrics}


def extractor_of(run: dict[str, Any]) -> str:
    """Of which features the run's figures are."""
    return str(run["params"].get("reference.extractor", ""))


def headline(runs: Iterable[dict[str, Any]]) -> str | None:
    """The figure to rank by: the kernel distance that most of the runs have; None where none has any."""
    names = [f"kid_{extractor_of(run)}" for run in runs]
    having = [name for name, run in zip(names, runs, strict=True) if name in run["metrics"]]
    return max(dict.fromkeys(having), key=having.count) if having else None


def differing(params: Iterable[dict[str, str]]) -> list[str]:
    """The names of the parameters that have more than one value; a run that has not got to a parameter has none."""
    values: dict[str, set[str]] = {}
    for one in params:
        for name, value in one.items():
            values.setdefault(name, set()).add(value)
    return [name for name, found in values.items() if len(found) > 1]


def ranked(table: pd.DataFrame, by: str | None) -> pd.DataFrame:
    """The rows by a figure, the least first and those without it last, otherwise in their order; numbered from 1."""
    if by is not None:
        table = table.sort_values(by, kind="stable", na_position="last")
    rank = pd.RangeIndex(1, len(table) + 1, name="rank")
    return table.set_index(rank).dropna(axis="columns", how="all")


def in_columns(table: pd.DataFrame) -> str:
    """For the terminal: a column a run, side by side as far as its width goes."""
    shown = table.assign(run=table["run"].str[:8]) if "run" in table else table
    width = shutil.get_terminal_size().columns
    return shown.T.to_string(line_width=width, float_format=lambda value: f"{value:.4g}", na_rep="–")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """The whole table, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    table.to_csv(temporary, lineterminator="\n")
    temporary.replace(path)


def compare_address(runs: Sequence[dict[str, Any]]) -> str:
    """The page on which MLflow compares these runs."""
    numbers = quote(json.dumps([run["run_id"] for run in runs], separators=(",", ":")))
    experiments = quote(json.dumps(sorted({run["experiment_id"] for run in runs}), separators=(",", ":")))
    return f"{mlflow_address()}/#/compare-runs?runs={numbers}&experiments={experiments}"


def charts_address(runs: Sequence[dict[str, Any]]) -> str:
    """The page on which MLflow shows the losses, figures and image grids of these runs together."""
    numbers = ", ".join(f"'{run['run_id']}'" for run in runs)
    chosen = quote(f"attributes.run_id IN ({numbers})")
    experiment = runs[0]["experiment_id"]
    return f"{mlflow_address()}/#/experiments/{experiment}/runs?searchFilter={chosen}&compareRunsMode=CHART"


def _choice(arguments: argparse.Namespace) -> list[str]:
    words = list(arguments.runs)
    if arguments.sweep:
        words += ["--sweep", arguments.sweep]
    if arguments.last:
        words += ["--last", str(arguments.last)]
    return words


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.compare", description=main.__doc__, epilog="Without a choice, all runs are compared."
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="the id of an MLflow run, its beginning, or its name")
    parser.add_argument("--sweep", metavar="NAME", help="the runs of a sweep")
    parser.add_argument("--last", type=_count, metavar="N", help="the newest N runs")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table there, too")
    return parser.parse_args()


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of runs: give 1 or more")
    return int(word)


if __name__ == "__main__":
    main()
