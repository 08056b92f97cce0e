"""Run the children of a sweep: as deployments where a worker takes them, otherwise in this process one by one."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from prefect import tags
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.logging import get_run_logger
from prefect.states import Cancelling

from flows.forms import Overrides
from flows.pipeline import pipeline
from flows.trials import Child
from tasks.stage import SWEEP_TAG, StageFailedError

DEPLOYMENT = "pipeline/quickstart"
"""What a child is a run of; the profile is a parameter of it."""

POLL_SECONDS = 2.0
STUCK_SECONDS = 120.0
"""After so long without a child that runs, the log says what may be in the way."""


@dataclass(frozen=True)
class Outcome:
    """How a child ended."""

    child: Child
    flow_run_id: UUID | None
    """None where it was not even started"""
    state: str
    """as Prefect names it: Completed, Failed, Crashed, Cancelled, ..."""
    why: str
    """of one that has not completed"""

    @property
    def is_completed(self) -> bool:
        """Whether it has made its model and figures."""
        return self.state == "Completed"


def why_in_process() -> str | None:
    """Why the children cannot be runs of a deployment; None where they can."""
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
        if pool.concurrency_limit is not None and pool.concurrency_limit - _own_places(name) < 1:
            # The sweep waits for its children, and they would wait for its end.
            return (
                f"the work pool {name} runs {pool.concurrency_limit} at a time, and the sweep itself takes that place"
            )
    return None


def _own_places(pool: str) -> int:
    """How many places of the pool this very run takes: none where it was started by hand."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return int(run is not None and run.work_pool_name == pool)


def in_process(sweep: str, profile: str | None, children: Sequence[Child]) -> list[Outcome]:
    """Run the children here, one after the other."""
    outcomes = []
    for child in children:
        get_run_logger().info(f"{child.described} starts")
        with tags(f"{SWEEP_TAG}{sweep}"):
            state = pipeline.with_options(flow_run_name=child.name)(
                profile, Overrides(**child.overrides), workspace="isolated", return_state=True
            )
        outcomes.append(_outcome(child, state.state_details.flow_run_id, state))
    return outcomes


def as_deployments(sweep: str, profile: str | None, children: Sequence[Child], max_concurrent: int) -> list[Outcome]:
    """Run the children through the pool of their deployment, at most so many at once.

    They are cancelled where this is interrupted, be it by an error, by Ctrl-C, or by the sweep's own cancelling.
    """
    fan_out = _FanOut(sweep, profile, deque(children), max_concurrent)
    try:
        while not fan_out.is_done():
            fan_out.start()
            time.sleep(POLL_SECONDS)
            fan_out.gather()
    except BaseException:
        fan_out.cancel()
        raise
    return [fan_out.outcomes[child.name] for child in children]


@dataclass
class _FanOut:
    sweep: str
    profile: str | None
    waiting: deque[Child]
    max_concurrent: int
    running: dict[UUID, Child] = field(default_factory=dict)
    """by flow run"""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """by name"""
    idle_since: float = field(default_factory=time.monotonic)
    """when a child last ran, as far as is known; infinite once that has been told"""

    def is_done(self) -> bool:
        return not self.waiting and not self.running

    def start(self) -> None:
        """Start children as far as there is room."""
        while self.waiting and len(self.running) < self.max_concurrent:
            child = self.waiting.popleft()
            try:
                run = self._started(child)
            except (httpx.HTTPError, PrefectException) as error:
                self._end(Outcome(child, None, "Not started", str(error)))
            else:
                self.running[run.id] = child
                get_run_logger().info(f"{child.described} is queued")

    def _started(self, child: Child) -> FlowRun:
        run = run_deployment(
            DEPLOYMENT,
            parameters={"profile": self.profile, "params": child.overrides, "workspace": "isolated"},
            flow_run_name=child.name,
            tags=[f"{SWEEP_TAG}{self.sweep}"],
            timeout=0,
        )
        assert isinstance(run, FlowRun)
        return run

    def gather(self) -> None:
        """Take in which children have ended."""
        try:
            with get_client(sync_client=True) as client:
                chosen = FlowRunFilter(id=FlowRunFilterId(any_=list(self.running)))
                found = {run.id: run.state for run in client.read_flow_runs(flow_run_filter=chosen)}
        except httpx.HTTPError as error:  # the server may come back; the children go on without it
            get_run_logger().warning(f"the Prefect server does not answer: {error!r}; asking again")
            return
        for run_id, child in list(self.running.items()):
            state = found.get(run_id)
            if run_id not in found:
                self._end(Outcome(child, run_id, "Deleted", "its flow run has been deleted"))
            elif state and state.is_final():
                self._end(_outcome(child, run_id, state))
            else:
                continue
            del self.running[run_id]
        self._warn_if_stuck(found)

    def _end(self, outcome: Outcome) -> None:
        self.outcomes[outcome.child.name] = outcome
        say = get_run_logger().info if outcome.is_completed else get_run_logger().error
        say(f"{outcome.child.described}: {outcome.state}{f': {outcome.why}' if outcome.why else ''}")

    def _warn_if_stuck(self, found: Mapping[UUID, State[Any] | None]) -> None:
        if any(state and not state.is_scheduled() for state in found.values()):
            self.idle_since = time.monotonic()
        elif time.monotonic() - self.idle_since > STUCK_SECONDS:
            self.idle_since = float("inf")
            get_run_logger().warning(
                "no child has started for a while: is a worker online, and do the limits of the worker and of its pool "
                "leave a place beside the sweep's own?"
            )

    def cancel(self) -> None:
        """Cancel what has been started and has not ended."""
        with get_client(sync_client=True) as client:
            for run_id in self.running:
                _cancel(client, run_id)


def _cancel(client: SyncPrefectClient, run_id: UUID) -> None:
    with suppress(httpx.HTTPError, PrefectException):  # the others are to be cancelled all the same
        client.set_flow_run_state(run_id, Cancelling(message="The sweep that it belongs to has been ended."))


def _outcome(child: Child, flow_run_id: UUID | None, state: State[Any]) -> Outcome:
    name = state.name or state.type.value.capitalize()
    if state.is_completed():
        return Outcome(child, flow_run_id, "Completed", "")
    # "Flow run encountered an exception: StageFailedError: stage train failed: …"
    message = (state.message or "").rpartition(f"{StageFailedError.__name__}: ")[2]
    return Outcome(child, flow_run_id, name, message)
