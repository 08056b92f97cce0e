"""Many experiments side by side: a grid or a list of overrides, each in its own workspace, ranked in the end."""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import pandas as pd
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from contract.params import Overrides, ParamsError, flat, list_profiles, parse_overrides
from flows.by_hand import run_to_completion
from flows.compare import (
    CompareError,
    charts_address,
    compare_address,
    figures,
    headline,
    in_columns,
    ranked,
    read_runs,
    write_csv,
)
from flows.fan_out import Outcome, as_deployments, in_process, why_in_process
from flows.trials import Child, SweepError, children_of
from flows.workspaces.experiments import keep_stages, make_experiment_name
from flows.workspaces.git import GitError
from flows.workspaces.workspace import ProfileName, enter_last_commit, open_workspace
from flows.workspaces.worktrees import WorkspaceError
from tasks.download import download
from tasks.gpu import GpuSlotLostError, TooFewGpusError
from tasks.preprocess import preprocess
from tasks.reference import reference
from tasks.run_page import show
from tasks.stage import StageFailedError

TABLES = Path("build/sweeps")
"""A CSV a sweep; no stage's output."""

_PREPARATION = ("download", "preprocess", "reference")
"""What children share that do not vary it."""

_OF_ONE_EXPERIMENT = (StageFailedError, GpuSlotLostError, TooFewGpusError, GitError)

NAME_PATTERN = "^[a-z0-9][a-z0-9-]{0,39}$"
MOST_CONCURRENT = 64


@flow(name="sweep")
def sweep(
    profile: ProfileName | None = None,
    grid: dict[str, list[Any]] = {},  # noqa: B006 (Prefect copies it)
    overrides: list[dict[str, Any]] = [],  # noqa: B006 (likewise)
    params: Overrides = Overrides(),  # noqa: B008
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None,
    max_concurrent: Annotated[int, Field(ge=1, le=MOST_CONCURRENT)] = 2,
) -> State[Any]:
    """Many experiments side by side, each the whole pipeline in a workspace of its own; a table ranks them in the end.

    A failed experiment does not end the others.

    Args:
        profile: a saved experiment of profiles/; left out, params.yaml of the last commit.
        grid: parameters by dotted names, each with a list of values; every combination is one experiment, as of
            {"train.learning_rate": [0.001, 0.002], "train.seed": [0, 1]}.
        overrides: in the place of a grid, the parameters of each experiment, by dotted names or nested, as
            [{"train.seed": 1}, {"train": {"seed": 2, "learning_rate": 0.001}}].
        params: what differs from the profile in all experiments.
        name: of the sweep, small letters, digits and hyphens: its runs bear it in MLflow as tag ddpm.sweep; left out,
            the name of its flow run.
        max_concurrent: experiments at once, where a worker runs them; how many share a GPU is the affair of the
            concurrency limit gpu.
    """
    # A flow run may be called anything; what bears this name are a tag, a file, and flow runs again.
    called, logger = name or make_experiment_name(str(flow_run.name)), get_run_logger()
    with enter_last_commit():
        children = children_of(called, profile, params.model_dump(by_alias=True, exclude_unset=True), grid, overrides)
    if why := why_in_process():
        logger.info("Sweep %s: %d children one after the other in this process, since %s", called, len(children), why)
        outcomes = in_process(called, profile, children)
    else:
        logger.info("Sweep %s: %d children as deployments, %d at once", called, len(children), max_concurrent)
        prepare(profile, children)
        outcomes = as_deployments(called, profile, children, max_concurrent)
    return conclude(called, outcomes)


def prepare(profile: str | None, children: Sequence[Child]) -> None:
    """Make what children share once, before several of them would at the same time: DVC's cache then has it."""
    different = {json.dumps([child.params.section(stage) for stage in _PREPARATION]): child for child in children}
    for child in different.values():
        try:
            with open_workspace("isolated") as place:
                place.activate(profile, child.overrides)
                download()
                preprocess()
                reference()
                keep_stages(place.folder / "dvc.lock", _PREPARATION)
        except _OF_ONE_EXPERIMENT as error:  # its child meets it, too, or does without
            get_run_logger().warning("What %s needs could not be prepared: %s", child.described, error)


def conclude(name: str, outcomes: Sequence[Outcome]) -> State[Any]:
    """The ranked table as artifact and file, and the state of the sweep: completed, where at least one child has."""
    logger = get_run_logger()
    measured = {
        outcome.child.name: recorded_metrics(outcome.flow_run_id)
        for outcome in outcomes
        if outcome.is_completed and outcome.flow_run_id
    }
    try:
        runs = runs_of(name, outcomes, measured)
    except CompareError as error:
        logger.error("MLflow cannot be asked for the runs: %s", error)
        runs = {}
    table = ranking(outcomes, runs, measured)
    path = TABLES / f"{name}.csv"
    write_csv(table, path)
    addresses = mlflow_addresses(list(runs.values()))
    show("the ranking", lambda: show_ranking(name, table, addresses), logger)
    shown = table.drop(columns="why", errors="ignore")
    logger.info("Sweep %s, whole in %s:\n%s", name, path, in_columns(shown))
    for what, address in addresses.items():
        logger.info("MLflow, %s: %s", what, address)
    failed = [outcome for outcome in outcomes if not outcome.is_completed]
    said = f"{len(outcomes) - len(failed)} of {len(outcomes)} children completed"
    if failed:
        said += f"; not so {', '.join(outcome.child.name for outcome in failed)}"
    return Failed(message=said) if len(failed) == len(outcomes) else Completed(message=said)


def runs_of(
    name: str, outcomes: Sequence[Outcome], measured: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What MLflow has of each child's run, by the child's name; one that ended before its training has none.

    A child whose results DVC had is served by an earlier run, which is tagged as part of this sweep, too, if MLflow
    still has it.

    Raises:
        CompareError: MLflow does not answer.
    """
    made = {child: metrics.get("mlflow_run_id") for child, metrics in measured.items()}
    known = [run_id for run_id in made.values() if run_id]
    try:
        runs = {run["run_id"]: run for run in read_runs([*known, "--join", name])}
    except CompareError:
        if known:
            raise
        return {}  # none has got to its training
    by_flow_run = {run["tags"].get("prefect_flow_run", "").rpartition("(")[2].rstrip(")"): run for run in runs.values()}
    found = {
        outcome.child.name: runs.get(made.get(outcome.child.name) or "") or by_flow_run.get(str(outcome.flow_run_id))
        for outcome in outcomes
    }
    return {child: run for child, run in found.items() if run}


def recorded_metrics(flow_run_id: UUID) -> dict[str, Any]:
    """A child's own table of metrics: its figures, and the MLflow run that they are recorded in."""
    with get_client(sync_client=True) as client:
        tables = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]),
                key=ArtifactFilterKey(any_=["metrics"]),
            )
        )
    if not tables:  # the server did not take it
        return {}
    return {row["metric"]: row["value"] for row in json.loads(str(tables[0].data))}


def ranking(
    outcomes: Sequence[Outcome], runs: Mapping[str, dict[str, Any]], measured: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """A row a child, the best first: its figures, what it varies, its state and its MLflow run; those without last.

    The figures are MLflow's, or where it does not have the run, those of the child's own table.
    """
    rows, compared = [], []
    for outcome in outcomes:
        run = runs.get(outcome.child.name)
        row: dict[str, Any] = {"child": outcome.child.name, "state": outcome.state}
        if outcome.is_completed:
            extractor = {"reference.extractor": outcome.child.params.reference.extractor}
            compared.append(run or {"params": extractor, "metrics": measured.get(outcome.child.name, {})})
            row |= figures(compared[-1])
        row |= {parameter: str(value) for parameter, value in outcome.child.varied.items()}
        rows.append(row | {"run": run["run_id"] if run else None, "why": outcome.why or None})
    table = pd.DataFrame(rows)
    last = [column for column in ("run", "why") if column in table]
    return ranked(table[[*table.columns.drop(last), *last]], headline(compared))


def mlflow_addresses(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The pages on which MLflow compares the runs; none where there are no runs."""
    if not runs:
        return {}
    return {
        "charts and image grids": charts_address(runs),
        "side by side": compare_address(runs),
    }


def show_ranking(name: str, table: pd.DataFrame, addresses: Mapping[str, str]) -> None:
    """The table on the run page, with the ways to MLflow."""
    links = ", ".join(f"[{what}]({address})" for what, address in addresses.items())
    create_table_artifact(
        json.loads(table.reset_index().to_json(orient="records", double_precision=15)),
        key="ranking",
        description=f"Sweep {name}, the best first. MLflow: {links}" if links else f"Sweep {name}: no run in MLflow",
    )


def main() -> None:
    """`python -m flows.sweep`: a sweep by hand."""
    arguments = _parse_arguments()
    try:
        grid = flat(parse_overrides(arguments.grid))
        shared, overrides = parse_overrides(arguments.set), _parsed_list(arguments.overrides)
        with enter_last_commit():
            children = children_of("sweep", arguments.profile, shared, grid, overrides)
    except (ParamsError, SweepError, WorkspaceError) as error:
        sys.exit(f"sweep: {error}")
    print(f"A sweep of {len(children)} experiments.", flush=True)
    state = run_to_completion(
        "sweep",
        lambda: sweep(
            arguments.profile,
            grid,
            overrides,
            Overrides(**shared),
            arguments.name,
            arguments.max_concurrent,
            return_state=True,
        ),
    )
    print(state.message)


def _parsed_list(text: str | None) -> list[dict[str, Any]]:
    if text is None:
        return []
    try:
        parsed = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise SweepError(f"--overrides is not YAML: {error}") from None
    if not isinstance(parsed, list) or not all(isinstance(one, dict) for one in parsed):
        raise SweepError(f"--overrides takes a list of mappings, such as [{{train.seed: 1}}], got {text!r}")
    return parsed


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.sweep", description=main.__doc__)
    parser.add_argument("--profile", help=f"a saved experiment: {', '.join(list_profiles())}")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="NAME=[VALUE,VALUE]", help="values of a parameter; repeatable"
    )
    parser.add_argument(
        "--overrides", metavar="LIST", help="in its place a list, as '[{train.seed: 1}, {train.seed: 2}]'"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of all experiments; repeatable"
    )
    parser.add_argument("--name", type=_name, help="of the sweep; left out, that of its flow run")
    parser.add_argument(
        "--max-concurrent", type=_count, default=2, metavar="N", help="experiments at once, under a worker"
    )
    return parser.parse_args()


def _name(word: str) -> str:
    if not re.match(NAME_PATTERN, word):
        raise argparse.ArgumentTypeError(f"{word!r} is no name of a sweep: up to 40 small letters, digits and hyphens")
    return word


def _count(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= MOST_CONCURRENT:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of experiments: 1 to {MOST_CONCURRENT}")
    return int(word)


if __name__ == "__main__":
    main()
