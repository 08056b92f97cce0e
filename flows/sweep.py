"""Run many experiments side by side: a grid or a list of overrides, each in its own workspace, ranked at the end."""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

from contract.assignments import parse_grid, parse_overrides
from contract.errors import FlowersError
from contract.git import GitError
from contract.paths import DVC_LOCK
from flows import MAX_CONCURRENT
from flows.by_hand import require_servers, run_to_completion
from flows.fan_out import Outcome, run_as_deployments, run_in_process, why_in_process
from flows.forms import Overrides
from flows.trials import Trial, parse_overrides_list, plan_trials
from flows.workspaces.experiments import keep_stages, make_experiment_name
from flows.workspaces.workspace import ProfileName, enter_last_commit, open_workspace
from tasks.gpus import GpuSlotsError
from tasks.stage import StageFailedError, log_failures_once
from tasks.stage_tasks import download, preprocess, reference

NAME_PATTERN = "^[a-z0-9][a-z0-9-]{0,39}$"

_SHARED_STAGES = ("download", "preprocess", "reference")
"""Stages whose outputs trials with equal parameters share."""


@flow(name="sweep")
def sweep(
    profile: ProfileName | None = None,
    grid: dict[str, list[Any]] = {},  # noqa: B006 (Prefect copies it)
    overrides: list[dict[str, Any]] = [],  # noqa: B006 (likewise)
    params: Overrides = Overrides(),  # noqa: B008
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None,
    max_concurrent: Annotated[int, Field(ge=1, le=MAX_CONCURRENT)] = 2,
) -> State[Any]:
    """Run many experiments side by side, each the whole pipeline in its own workspace; a table ranks them at the end.

    An experiment of a sweep is called a trial. A failed trial does not end the others.

    Args:
        profile: a saved experiment of profiles/; left out, params.yaml of the last commit.
        grid: parameters by dotted names, each with a list of values; every combination is one trial, for example
            {"train.learning_rate": [0.001, 0.002], "train.seed": [0, 1]}.
        overrides: instead of a grid, the parameters of each trial, by dotted names or nested, for example
            [{"train.seed": 1}, {"train": {"seed": 2, "learning_rate": 0.001}}].
        params: parameters that differ from the profile in all trials.
        name: name of the sweep, in small letters, digits and hyphens; its MLflow runs get it as tag ddpm.sweep; left
            out, the name of its flow run.
        max_concurrent: number of trials at once, where a worker runs them; each waits for a free GPU of its machine.
    """
    log_failures_once()
    # The name of a flow run may hold anything; this one names a tag, a file, and flow runs.
    sweep_name, logger = name or make_experiment_name(str(flow_run.name)), get_run_logger()
    with enter_last_commit():
        shared = params.model_dump(by_alias=True, exclude_unset=True)
        trials = plan_trials(sweep_name, profile, shared, grid, overrides)
    if why := why_in_process():
        logger.info("Sweep %s: %d trials one after the other in this process, since %s", sweep_name, len(trials), why)
        outcomes = run_in_process(sweep_name, profile, trials)
    else:
        logger.info("Sweep %s: %d trials as deployments, %d at once", sweep_name, len(trials), max_concurrent)
        prepare(profile, trials)
        outcomes = run_as_deployments(sweep_name, profile, trials, max_concurrent)
    return conclude(sweep_name, outcomes)


def prepare(profile: str | None, trials: Sequence[Trial]) -> None:
    """Run the stages that trials share once, before several trials would at the same time; DVC's cache keeps them."""
    different = {json.dumps([trial.params.section(stage) for stage in _SHARED_STAGES]): trial for trial in trials}
    for trial in different.values():
        try:
            with open_workspace("isolated") as place:
                place.activate(profile, trial.overrides)
                download()
                preprocess()
                reference()
                keep_stages(place.folder / DVC_LOCK, _SHARED_STAGES)
        except (StageFailedError, GpuSlotsError, GitError) as error:  # the trial meets and reports it, too
            get_run_logger().warning("The data of %s could not be prepared: %s", trial, error)


def conclude(sweep_name: str, outcomes: Sequence[Outcome]) -> State[Any]:
    """Show the ranking, and return the state of the sweep: completed, where at least one trial has."""
    from flows.ranking import show_ranking  # pandas and MLflow, which take seconds

    show_ranking(sweep_name, outcomes)
    failed = [outcome.trial.name for outcome in outcomes if not outcome.state.is_completed()]
    message = f"{len(outcomes) - len(failed)} of {len(outcomes)} trials completed"
    if failed:
        message += f"; not completed: {', '.join(failed)}"
    return Failed(message=message) if len(failed) == len(outcomes) else Completed(message=message)


def run_by_hand(
    profile: str | None,
    grid: list[str],
    overrides: str | None,
    assignments: list[str],
    name: str | None,
    max_concurrent: int,
) -> None:
    """Run a sweep from a terminal, on a temporary server where none is configured, and print its result.

    The arguments are those of the flow, in the words of the command line.

    Raises:
        FlowersError: something cannot be used; nothing has been started.
    """
    if name is not None and not re.match(NAME_PATTERN, name):
        raise FlowersError(f"the name of a sweep has up to 40 small letters, digits and hyphens, got {name!r}")
    parsed_grid, shared, parsed_list = parse_grid(grid), parse_overrides(assignments), parse_overrides_list(overrides)
    with enter_last_commit():
        trials = plan_trials("sweep", profile, shared, parsed_grid, parsed_list)
    require_servers()
    print(f"A sweep of {len(trials)} trials.", flush=True)
    state = run_to_completion(
        "flowers sweep",
        lambda: sweep(profile, parsed_grid, parsed_list, Overrides(**shared), name, max_concurrent, return_state=True),
    )
    print(state.message)
