"""A sweep throttles, watches and cancels its trials; tests/seams/test_sweep.py shows it on real servers."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled

from flows import fan_out
from flows.fan_out import run_as_deployments, why_in_process
from flows.trials import Trial


def plan(count):
    return [Trial(f"owls-{n}", {"train": {"seed": n}}, {"train.seed": n}, params=None) for n in range(1, count + 1)]


@dataclass
class Server:
    """Plays a Prefect server whose runs go through the given states, one at each question."""

    states: dict[str, list] = field(default_factory=dict)
    """states of a trial, by its name; a trial without any completes at once"""
    refused: str = ""
    """name of a trial that cannot be started"""
    runs: dict[UUID, str] = field(default_factory=dict)
    num_at_once: list = field(default_factory=list)
    set_states: list = field(default_factory=list)

    def run_deployment(self, _deployment, *, flow_run_name, **_options):
        if flow_run_name == self.refused:
            raise httpx.ConnectError("the server is busy")
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name=flow_run_name)
        self.runs[run.id] = flow_run_name
        return run

    def read_flow_runs(self, flow_run_filter):
        self.num_at_once.append(len(flow_run_filter.id.any_))
        states = {run_id: self.next_state(self.runs[run_id]) for run_id in flow_run_filter.id.any_}
        return [SimpleNamespace(id=run_id, state=state) for run_id, state in states.items() if state is not None]

    def next_state(self, name):
        waiting = self.states.get(name, [Completed()])
        state = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(state, BaseException):
            raise state
        return state

    def set_flow_run_state(self, run_id, state):
        self.set_states.append((self.runs[run_id], state.type.value))


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(fan_out, "get_client", lambda **_: nullcontext(made))
    monkeypatch.setattr(fan_out, "run_deployment", made.run_deployment)
    monkeypatch.setattr(fan_out, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(fan_out, "get_run_logger", lambda: logging.getLogger("test"))
    return made


@pytest.mark.parametrize("max_concurrent", [1, 2, 9])
def test_no_more_trials_run_at_once_than_allowed(server, max_concurrent):
    server.states = {f"owls-{n}": [Scheduled(), Running(), Running(), Completed()][n % 3 :] for n in range(1, 6)}
    outcomes = run_as_deployments("owls", None, plan(5), max_concurrent)
    assert [outcome.trial.name for outcome in outcomes] == [f"owls-{n}" for n in range(1, 6)]
    assert max(server.num_at_once) == min(5, max_concurrent)


def test_a_failed_trial_does_not_end_the_others_and_its_message_is_kept(server, caplog):
    why = "Flow run encountered an exception: StageFailedError: stage train failed: the loss is not finite"
    server.states = {
        "owls-1": [Running(), Failed(message=why)],
        "owls-2": [Pending(), Crashed(message="the worker died")],
        "owls-3": [Running(), None],  # somebody deleted it
        "owls-4": [Cancelled(message="by hand")],
    }
    server.refused = "owls-5"
    outcomes = run_as_deployments("owls", None, plan(6), 2)
    assert [(outcome.state.name, outcome.why) for outcome in outcomes] == [
        ("Failed", why),
        ("Crashed", "the worker died"),
        ("Deleted", "its flow run has been deleted"),
        ("Cancelled", "by hand"),
        ("Not started", "the server is busy"),
        ("Completed", None),
    ]
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert f"owls-1 (train.seed=1): Failed: {why}" in errors and len(errors) == 5


def test_a_server_that_is_gone_for_a_moment_ends_nothing(server, caplog):
    server.states = {"owls-1": [Running(), httpx.ConnectError("gone"), Running(), Completed()]}
    (outcome,) = run_as_deployments("owls", None, plan(1), 1)
    assert outcome.state.is_completed() and server.set_states == []
    assert "the Prefect server does not answer: ConnectError('gone')" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_the_trials_that_run_are_cancelled_with_the_sweep(server, error):
    server.states = {"owls-1": [Completed()], "owls-2": [Running()], "owls-3": [Running(), Running(), error]}
    with pytest.raises(type(error)):
        run_as_deployments("owls", None, plan(5), 2)
    assert server.set_states == [("owls-2", "CANCELLING"), ("owls-3", "CANCELLING")]
    assert len(server.runs) == 3, "and those that wait are not started"


def test_trials_that_never_start_are_reported_once(server, monkeypatch, caplog):
    monkeypatch.setattr(fan_out, "STUCK_SECONDS", -1.0)
    server.states = {"owls-1": [Scheduled(), Scheduled(), Scheduled(), Running(), Completed()]}
    run_as_deployments("owls", None, plan(1), 1)
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "leave a place beside the sweep's own" in caplog.text


@pytest.fixture
def pool(monkeypatch):
    """State of the deployment, its pool and its workers on the server."""
    known = SimpleNamespace(
        deployment=SimpleNamespace(work_pool_name="local", paused=False),
        pool=SimpleNamespace(is_paused=False, concurrency_limit=None),
        workers=[SimpleNamespace(status=WorkerStatus.OFFLINE), SimpleNamespace(status=WorkerStatus.ONLINE)],
    )

    def read_deployment(name):
        if known.deployment is None:
            raise ObjectNotFound(KeyError(name))
        return known.deployment

    client = SimpleNamespace(
        read_deployment_by_name=read_deployment,
        read_work_pool=lambda _name: known.pool,
        read_workers_for_work_pool=lambda _name: known.workers,
    )
    monkeypatch.setattr(fan_out, "get_client", lambda **_: nullcontext(client))
    return known


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda known: setattr(known, "deployment", None), "there is no deployment pipeline/quickstart"),
        (lambda known: setattr(known.deployment, "work_pool_name", None), "has no work pool"),
        (lambda known: setattr(known.deployment, "paused", True), "is paused"),
        (lambda known: setattr(known.pool, "is_paused", True), "is paused"),
        (lambda known: known.workers.pop(), "no worker of the work pool local is online"),
        (lambda known: setattr(known.pool, "concurrency_limit", 0), "the work pool local runs 0 at a time"),
    ],
)
def test_without_a_pool_that_takes_trials_the_reason_is_named(pool, spoil, why):
    spoil(pool)
    assert why in why_in_process()


@pytest.mark.parametrize(("limit", "own_pool", "is_in_process"), [
    (1, "local", True), (2, "local", False), (1, None, False), (1, "another", False), (None, "local", False),
])  # fmt: skip
def test_a_sweep_does_not_wait_for_the_place_that_it_takes_itself(pool, monkeypatch, limit, own_pool, is_in_process):
    pool.pool.concurrency_limit = limit
    context = SimpleNamespace(flow_run=SimpleNamespace(work_pool_name=own_pool))
    monkeypatch.setattr(fan_out, "FlowRunContext", SimpleNamespace(get=lambda: context))
    why = why_in_process()
    assert "the sweep itself takes that place" in why if is_in_process else why is None
