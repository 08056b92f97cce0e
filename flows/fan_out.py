"""Run the trials of a sweep: as deployments where a worker takes them, otherwise in this process one by one."""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect import tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Cancelling, Failed

from flows.forms import Overrides
from flows.pipeline import pipeline
from flows.trials import Trial
from tasks.stage import SWEEP_TAG

DEPLOYMENT = "pipeline/quickstart"
"""Deployment that runs a trial; the profile is one of its parameters."""

POLL_SECONDS = 2.0
STUCK_SECONDS = 120.0
"""Time without a running trial after which the log names possible reasons."""


@dataclass(frozen=True)
class Outcome:
    """End of a trial."""

    trial: Trial
    flow_run_id: UUID | None
    """None where the trial could not be started"""
    state: State[Any]
    """Prefect's final state: Completed, Failed, Crashed, Cancelled, ..."""

    @property
    def why(self) -> str | None:
        """Prefect's message, where the trial has not completed."""
        return None if self.state.is_completed() else self.state.message


def why_in_process() -> str | None:
    """Return why the trials cannot be runs of a deployment; None where they can."""
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            return f"there is no deployment {DEPLOYMENT}"
        name = deployment.work_pool_name
        if name is None:
            return f"the deployment {DEPLOYMENT} has no work pool"
        pool = client.read_work_pool(name)
        if deployment.paused or pool.is_paused:
            return f"the work pool {name} or the deployment {DEPLOYMENT} is paused"
        if all(worker.status is not WorkerStatus.ONLINE for worker in client.read_workers_for_work_pool(name)):
            return f"no worker of the work pool {name} is online"
    context = FlowRunContext.get()
    is_in_pool = bool(context and context.flow_run and context.flow_run.work_pool_name == name)
    if pool.concurrency_limit is not None and pool.concurrency_limit <= int(is_in_pool):
        # The sweep would wait for its trials, and they for its end.
        return f"the work pool {name} runs {pool.concurrency_limit} at a time, and the sweep itself takes that place"
    return None


def run_in_process(sweep: str, profile: str | None, trials: Sequence[Trial]) -> list[Outcome]:
    """Run the trials here, one after the other."""
    outcomes = []
    for trial in trials:
        get_run_logger().info(f"{trial} starts")
        with tags(f"{SWEEP_TAG}{sweep}"):
            state = pipeline.with_options(flow_run_name=trial.name)(
                profile, Overrides(**trial.overrides), workspace="isolated", return_state=True
            )
        outcomes.append(Outcome(trial, state.state_details.flow_run_id, state))
    return outcomes


def run_as_deployments(sweep: str, profile: str | None, trials: Sequence[Trial], max_concurrent: int) -> list[Outcome]:
    """Run the trials through the work pool of their deployment, at most `max_concurrent` at once.

    The trials that run are cancelled where this is interrupted: by an error, by Ctrl-C, or by cancelling the sweep.
    """
    waiting, running, outcomes = deque(trials), dict[UUID, Trial](), list[Outcome]()
    last_seen_running = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < max_concurrent:
                trial = waiting.popleft()
                try:
                    running[_start(sweep, profile, trial)] = trial
                except (httpx.HTTPError, PrefectException) as error:
                    not_started: State[Any] = Failed(name="Not started", message=str(error))
                    outcomes.append(_report(Outcome(trial, None, not_started)))
            time.sleep(POLL_SECONDS)
            states = _read_states(running)
            for run_id in [run_id for run_id, state in states.items() if state.is_final()]:
                outcomes.append(_report(Outcome(running.pop(run_id), run_id, states[run_id])))
            if any(not state.is_scheduled() for state in states.values()):
                last_seen_running = time.monotonic()
            elif time.monotonic() - last_seen_running > STUCK_SECONDS:
                last_seen_running = float("inf")  # warn once
                get_run_logger().warning(
                    "no trial has started for a while: is a worker online, and do the limits of the worker and of its "
                    "pool leave a place beside the sweep's own?"
                )
    except BaseException:
        _cancel(running)
        raise
    return sorted(outcomes, key=lambda outcome: trials.index(outcome.trial))


def _start(sweep: str, profile: str | None, trial: Trial) -> UUID:
    run = run_deployment(
        DEPLOYMENT,
        parameters={"profile": profile, "params": trial.overrides, "workspace": "isolated"},
        flow_run_name=trial.name,
        tags=[f"{SWEEP_TAG}{sweep}"],
        timeout=0,
    )
    assert isinstance(run, FlowRun)
    get_run_logger().info(f"{trial} is queued")
    return run.id


def _read_states(run_ids: Iterable[UUID]) -> dict[UUID, State[Any]]:
    """Return the states of flow runs; nothing where the server does not answer, which may come back."""
    chosen = list(run_ids)
    try:
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=chosen)))
    except httpx.HTTPError as error:
        get_run_logger().warning(f"the Prefect server does not answer: {error!r}; asking again")
        return {}
    states = {run.id: run.state for run in runs}
    deleted: State[Any] = Cancelled(name="Deleted", message="its flow run has been deleted")
    return {run_id: state for run_id in chosen if (state := states.get(run_id, deleted))}


def _cancel(run_ids: Iterable[UUID]) -> None:
    for run_id in run_ids:
        # Go on with the others, and with the error that ends the sweep.
        with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Cancelling(message="The sweep that it belongs to has been ended."))


def _report(outcome: Outcome) -> Outcome:
    log = get_run_logger().info if outcome.state.is_completed() else get_run_logger().error
    log(f"{outcome.trial}: {outcome.state.name}{f': {outcome.why}' if outcome.why else ''}")
    return outcome
