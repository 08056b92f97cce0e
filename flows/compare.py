"""Print recorded runs side by side: their figures and the parameters that differ, the best run first."""

from collections.abc import Sequence
from pathlib import Path

from contract.errors import FlowersError


class CompareError(FlowersError):
    """Runs cannot be compared."""


def compare(runs: Sequence[str], sweep: str | None, last: int | None, csv: Path | None) -> None:
    """Print runs side by side, and the address of MLflow's page that compares them; without a choice, all runs.

    Args:
        runs: ids, beginnings of ids, or names.
        sweep: name of a sweep, whose runs are added.
        last: number of newest runs to add.
        csv: file to which the table is written, too.

    Raises:
        FlowersError: MLflow does not answer or has no such run, or the file cannot be written.
    """
    from tracking.comparison import compare_page, compare_runs, format_table, write_csv
    from tracking.search import choose_runs

    if last is not None and last < 1:
        raise CompareError(f"the number of newest runs must be 1 or more, got {last}")
    found = choose_runs(runs, sweep, last)
    if found.empty:
        raise CompareError("MLflow has no runs yet; `make run` makes one")
    table = compare_runs(found)
    if csv:
        try:
            write_csv(table, csv)
        except OSError as error:
            raise CompareError(f"the table cannot be written: {error}; name another file") from error
    print(format_table(table))
    print(f"\nMLflow: {compare_page(found)}")
