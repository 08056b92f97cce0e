"""Print runs that MLflow has recorded, as JSON, for the flows that compare and rank them."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from contract.errors import StageError
from tracking.runs import SWEEP_TAG, join_sweep, recorded_runs, tracking_uri

LEAST_PREFIX = 4
"""Characters of a run's id that name it, where no other begins with them."""


class UnknownRunError(StageError):
    """MLflow has no such run; the message says what was looked for, and where."""


@dataclass(frozen=True)
class RecordedRun:
    """What MLflow has of a run."""

    run_id: str
    experiment_id: str
    name: str
    status: str
    started_ms: int
    """since 1970"""
    params: dict[str, str]
    metrics: dict[str, float]
    """the last value of each"""
    tags: dict[str, str]

    @classmethod
    def of(cls, run: Any) -> "RecordedRun":
        """From MLflow's own description."""
        return cls(
            run_id=run.info.run_id,
            experiment_id=run.info.experiment_id,
            name=run.info.run_name,
            status=run.info.status,
            started_ms=run.info.start_time,
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            tags=dict(run.data.tags),
        )


def found_runs(filter_text: str = "", max_runs: int | None = None) -> list[RecordedRun]:
    """The runs of the project that a filter of MLflow lets through, newest first.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    return [RecordedRun.of(run) for run in recorded_runs(filter_text, max_runs)]


def chosen_runs(names: Sequence[str], sweep: str | None, last: int | None) -> list[RecordedRun]:
    """The runs of these names, then those of a sweep, then the newest ones; each once. With no choice, all.

    Raises:
        UnknownRunError: a name, or the sweep, is none that MLflow has, or a name is that of several runs.
        TrackingError: MLflow cannot be reached.
    """
    runs: list[RecordedRun] = []
    if names:
        recorded = found_runs()
        runs += [named_run(name, recorded) for name in names]
    if sweep is not None:
        runs += runs_of_sweep(sweep)
    if last is not None:
        runs += found_runs(max_runs=last)
    if not names and sweep is None and last is None:
        runs += found_runs()
    return list({run.run_id: run for run in runs}.values())


def joined_runs(run_ids: Sequence[str], sweep: str) -> list[RecordedRun]:
    """The runs of a sweep, after these have joined it as far as MLflow has them: some may have been deleted since.

    Raises:
        UnknownRunError: the sweep has no run.
        TrackingError: MLflow cannot be reached.
    """
    join_sweep([run.run_id for run in found_runs() if run.run_id in run_ids], sweep)
    return runs_of_sweep(sweep)


def named_run(name: str, recorded: Sequence[RecordedRun]) -> RecordedRun:
    """The run of this id, or of this name in MLflow, or whose id alone begins so.

    Raises:
        UnknownRunError: there is none, or more than one.
    """
    found = [run for run in recorded if name in (run.run_id, run.name)]
    if not found and len(name) >= LEAST_PREFIX:
        found = [run for run in recorded if run.run_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownRunError(f"{name!r} may be any of {', '.join(run.run_id for run in found)}: name one by its id")
    known = ", ".join(f"{run.name} ({run.run_id})" for run in recorded[:5])
    newest = f"the newest are {known}" if known else "it has no runs yet"
    raise UnknownRunError(f"MLflow at {tracking_uri()} has no run {name!r}; {newest}")


def runs_of_sweep(sweep: str) -> list[RecordedRun]:
    """The runs of a sweep, newest first.

    Raises:
        UnknownRunError: there is none.
    """
    quoted = sweep.replace("'", "")  # which no sweep has in its name
    # MLflow knows no words within a tag: the filter finds names, too, that this one is a part of.
    similar = found_runs(f"tags.`{SWEEP_TAG}` LIKE '%{quoted}%'")
    runs = [run for run in similar if sweep in run.tags[SWEEP_TAG].split()]
    if not runs:
        others = {name for run in found_runs() for name in run.tags.get(SWEEP_TAG, "").split()}
        known = f"there are {', '.join(sorted(others))}" if others else "there are none yet"
        raise UnknownRunError(f"MLflow at {tracking_uri()} has no sweep {sweep!r}; {known}")
    return runs


def main() -> None:
    """Print a JSON list with an object a run; an error is one line, and status 1."""
    arguments = _parse_arguments()
    try:
        if arguments.join:
            runs = joined_runs(arguments.runs, arguments.join)
        else:
            runs = chosen_runs(arguments.runs, arguments.sweep, arguments.last)
    except StageError as error:
        sys.stderr.write(f"compare: error: {error}\n")
        sys.exit(1)
    json.dump([asdict(run) for run in runs], sys.stdout)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tracking.search", description=main.__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="the id of an MLflow run, its beginning, or its name")
    parser.add_argument("--sweep", help="the runs of this sweep")
    parser.add_argument("--last", type=int, help="so many of the newest runs")
    parser.add_argument(
        "--join", metavar="SWEEP", help="tag these runs, by their ids, as parts of a sweep, and print all its runs"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
