"""How the children of a sweep are run: at most so many at once, each by itself, cancelled with the sweep."""

import logging
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled

from flows import fan_out
from flows.fan_out import DEPLOYMENT, as_deployments, in_process, why_in_process
from flows.trials import Child


def children(count):
    return [Child(f"owls-{n}", {"train": {"seed": n}}, {"train.seed": n}, params=None) for n in range(1, count + 1)]


@dataclass
class Server:
    """Plays a Prefect server whose runs go through the given states, one at each question."""

    states: dict[str, list] = field(default_factory=dict)
    """of a child, by its name; a child without any completes at once"""
    asked: list = field(default_factory=list)
    """what was started: name, deployment, parameters, tags"""
    runs: dict[UUID, str] = field(default_factory=dict)
    num_at_once: list = field(default_factory=list)
    set_states: list = field(default_factory=list)

    def run_deployment(self, name, *, parameters, flow_run_name, tags, timeout):
        assert timeout == 0
        self.asked.append((flow_run_name, name, parameters, tags))
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name=flow_run_name)
        self.runs[run.id] = flow_run_name
        return run

    def read_flow_runs(self, flow_run_filter):
        ids = flow_run_filter.id.any_
        self.num_at_once.append(len(ids))
        told = []
        for run_id in ids:
            waiting = self.states.get(self.runs[run_id], [Completed()])
            state = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if isinstance(state, BaseException):
                raise state
            if state is not None:
                told.append(SimpleNamespace(id=run_id, state=state))
        return told

    def set_flow_run_state(self, run_id, state):
        self.set_states.append((self.runs[run_id], state.type.value))


@pytest.fixture
def server(monkeypatch):
    made = Server()

    @contextmanager
    def client(sync_client):
        yield made

    monkeypatch.setattr(fan_out, "get_client", client)
    monkeypatch.setattr(fan_out, "run_deployment", made.run_deployment)
    monkeypatch.setattr(fan_out, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(fan_out, "get_run_logger", lambda: logging.getLogger("test"))
    return made


def test_children_run_as_deployments_with_their_parameters_and_tag(server):
    outcomes = as_deployments("owls", "quickstart", children(2), 2)
    assert server.asked[1] == (
        "owls-2",
        DEPLOYMENT,
        {"profile": "quickstart", "params": {"train": {"seed": 2}}, "workspace": "isolated"},
        ["sweep:owls"],
    )
    assert [(outcome.child.name, outcome.is_completed) for outcome in outcomes] == [("owls-1", True), ("owls-2", True)]
    assert {outcome.flow_run_id for outcome in outcomes} == set(server.runs)


@pytest.mark.parametrize("max_concurrent", [1, 2, 3, 9])
def test_at_most_so_many_run_at_once(server, max_concurrent):
    server.states = {f"owls-{n}": [Scheduled(), Running(), Running(), Completed()][n % 3 :] for n in range(1, 6)}
    outcomes = as_deployments("owls", None, children(5), max_concurrent)
    assert len(outcomes) == 5 and max(server.num_at_once) == min(5, max_concurrent)


def test_a_failed_child_does_not_sink_the_others(server, caplog):
    why = "Flow run encountered an exception: StageFailedError: stage train failed: the loss of step 4 is not finite"
    server.states = {
        "owls-1": [Running(), Failed(message=why)],
        "owls-2": [Pending(), Crashed(message="the worker died")],
        "owls-3": [Running(), None],  # somebody deleted it
        "owls-4": [Cancelled(message="by hand")],
    }
    outcomes = as_deployments("owls", None, children(5), 2)
    assert [(outcome.state, outcome.why) for outcome in outcomes] == [
        ("Failed", "stage train failed: the loss of step 4 is not finite"),
        ("Crashed", "the worker died"),
        ("Deleted", "its flow run has been deleted"),
        ("Cancelled", "by hand"),
        ("Completed", ""),
    ]
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert errors[0] == "owls-1 (train.seed=1): Failed: stage train failed: the loss of step 4 is not finite"


def test_a_child_that_cannot_be_started_is_one_that_failed(server, monkeypatch):
    start = server.run_deployment

    def refuse(*arguments, **options):
        if options["flow_run_name"] == "owls-1":
            raise httpx.ConnectError("the server is busy")
        return start(*arguments, **options)

    monkeypatch.setattr(fan_out, "run_deployment", refuse)
    first, second = as_deployments("owls", None, children(2), 1)
    assert (first.state, first.why, first.flow_run_id) == ("Not started", "the server is busy", None)
    assert second.is_completed


def test_a_server_that_is_gone_for_a_moment_ends_nothing(server, caplog):
    server.states = {"owls-1": [Running(), httpx.ConnectError("gone"), Running(), Completed()]}
    (outcome,) = as_deployments("owls", None, children(1), 1)
    assert outcome.is_completed and server.set_states == []
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "the Prefect server does not answer: ConnectError('gone'); asking again"
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), ZeroDivisionError()])
def test_the_children_are_cancelled_with_the_sweep(server, error):
    server.states = {"owls-1": [Completed()], "owls-2": [Running()], "owls-3": [Running(), Running(), error]}
    with pytest.raises(type(error)):
        as_deployments("owls", None, children(5), 2)
    assert server.set_states == [("owls-2", "CANCELLING"), ("owls-3", "CANCELLING")]
    assert len(server.asked) == 3, "and those that wait are not started"


def test_children_that_never_start_are_told_of_once(server, monkeypatch, caplog):
    monkeypatch.setattr(fan_out, "STUCK_SECONDS", -1.0)
    server.states = {"owls-1": [Scheduled(), Scheduled(), Scheduled(), Running(), Completed()]}
    as_deployments("owls", None, children(1), 1)
    assert Counter(record.levelname for record in caplog.records)["WARNING"] == 1
    assert "leave a place beside the sweep's own" in caplog.text


@pytest.fixture
def pool(monkeypatch):
    """What the server knows of the deployment, its pool and its workers."""
    known = SimpleNamespace(
        deployment=SimpleNamespace(work_pool_name="local", paused=False),
        pool=SimpleNamespace(is_paused=False, concurrency_limit=None),
        workers=[SimpleNamespace(status=WorkerStatus.OFFLINE), SimpleNamespace(status=WorkerStatus.ONLINE)],
    )

    def read_deployment(name):
        if known.deployment is None:
            raise ObjectNotFound(KeyError(name))
        return known.deployment

    @contextmanager
    def client(sync_client):
        yield SimpleNamespace(
            read_deployment_by_name=read_deployment,
            read_work_pool=lambda _name: known.pool,
            read_workers_for_work_pool=lambda _name: known.workers,
        )

    monkeypatch.setattr(fan_out, "get_client", client)
    return known


def test_a_pool_with_a_worker_takes_the_children(pool):
    assert why_in_process() is None


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda known: setattr(known, "deployment", None), "there is no deployment pipeline/quickstart"),
        (lambda known: setattr(known.deployment, "work_pool_name", None), "has no work pool"),
        (lambda known: setattr(known.deployment, "paused", True), "is paused"),
        (lambda known: setattr(known.pool, "is_paused", True), "is paused"),
        (lambda known: known.workers.pop(), "no worker of the work pool local is online"),
        (lambda known: known.workers.clear(), "no worker of the work pool local is online"),
        (lambda known: setattr(known.pool, "concurrency_limit", 0), "the work pool local runs 0 at a time"),
    ],
)
def test_otherwise_they_run_in_process_and_the_log_can_say_why(pool, spoil, why):
    spoil(pool)
    assert why in why_in_process()


@pytest.mark.parametrize(("limit", "own_pool", "is_in_process"), [
    (1, "local", True), (2, "local", False), (1, None, False), (1, "another", False), (None, "local", False),
])  # fmt: skip
def test_a_sweep_does_not_wait_for_the_place_that_it_holds_itself(pool, monkeypatch, limit, own_pool, is_in_process):
    pool.pool.concurrency_limit = limit
    context = SimpleNamespace(flow_run=SimpleNamespace(work_pool_name=own_pool))
    monkeypatch.setattr(fan_out, "FlowRunContext", SimpleNamespace(get=lambda: context))
    why = why_in_process()
    assert (why is not None) is is_in_process
    assert not is_in_process or "the sweep itself takes that place" in why


def test_in_process_children_run_one_by_one_and_a_failed_one_sinks_no_other(monkeypatch):
    seen, run_id = [], uuid4()

    class Pipeline:
        def with_options(self, flow_run_name):
            self.name = flow_run_name
            return self

        def __call__(self, profile, params, workspace, return_state):
            assert return_state
            from prefect.context import TagsContext

            tags = TagsContext.get().current_tags
            seen.append((self.name, profile, params.model_dump(exclude_unset=True), workspace, tags))
            state = Completed() if self.name != "owls-1" else Failed(message="StageFailedError: stage train failed")
            state.state_details.flow_run_id = run_id
            return state

    monkeypatch.setattr(fan_out, "pipeline", Pipeline())
    monkeypatch.setattr(fan_out, "get_run_logger", lambda: logging.getLogger("test"))
    outcomes = in_process("owls", "quickstart", children(2))
    assert [(outcome.state, outcome.flow_run_id) for outcome in outcomes] == [("Failed", run_id), ("Completed", run_id)]
    assert seen[1] == ("owls-2", "quickstart", {"train": {"seed": 2}}, "isolated", {"sweep:owls"})
