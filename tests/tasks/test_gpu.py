"""Slots of the limit and cards around a stage: where there is a limit, and what their wait and loss lead to."""

import asyncio
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.exceptions import ObjectNotFound
from tasks.gpu import GpuSlotLostError, TooFewGpusError, gpu_slots, slots_of_limit

from tasks import cards, gpu


class Server:
    """Slots of a limit, or no limit."""

    def __init__(self):
        self.slots, self.free, self.asked, self.lost = 2, threading.Event(), [], False
        self.free.set()

    @contextmanager
    def concurrency(self, name, occupy, **options):
        self.asked.append((name, occupy, options))
        assert self.free.wait(10)
        yield
        if self.lost:
            raise asyncio.CancelledError


@pytest.fixture
def server(monkeypatch, driver):
    """On a machine without a card, unless the test makes some."""
    made = Server()
    driver("No devices were found")
    monkeypatch.setattr(gpu, "concurrency", made.concurrency)
    monkeypatch.setattr(gpu, "slots_of_limit", lambda: made.slots)
    monkeypatch.setattr(gpu, "task_run", SimpleNamespace(id=uuid4()))
    monkeypatch.setattr(gpu, "NOTICE_SECONDS", 0.05)
    monkeypatch.setattr(cards, "POLL_SECONDS", 0.01)
    return made


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(
        gpu, "get_run_logger", lambda: SimpleNamespace(info=lambda text, *values: lines.append(text % values))
    )
    return lines


def test_a_slot_is_held_by_the_task_with_a_lease_that_ends_soon_and_is_not_lost_silently(server, log):
    with gpu_slots(1):
        ((name, occupy, options),) = server.asked
    assert (name, occupy) == ("gpu", 1)
    assert options["lease_duration"] == 60.0  # the least that a server takes
    assert options["raise_on_lease_renewal_failure"] is True
    assert (options["holder"].type, options["holder"].id) == ("task_run", gpu.task_run.id)
    assert log == []


def test_where_there_is_no_limit_nothing_is_held(server, log, two_cards):
    server.slots = None
    with gpu_slots(1) as first, gpu_slots(2) as second:
        assert first == second == {}
    assert server.asked == [] and log == []


def test_each_process_has_a_slot_and_a_card(server, log, two_cards):
    with gpu_slots(1) as first, gpu_slots(1) as second:
        assert [first, second] == [{"CUDA_VISIBLE_DEVICES": "GPU-rose"}, {"CUDA_VISIBLE_DEVICES": "GPU-tulip"}]
    with gpu_slots(2) as both:
        assert both == {"CUDA_VISIBLE_DEVICES": "GPU-rose,GPU-tulip"}
    assert [occupy for _, occupy, _ in server.asked] == [1, 1, 2] and log == []


def test_the_cards_are_among_those_that_the_worker_was_started_with(server, log, two_cards, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with gpu_slots(1) as names:
        assert names == {"CUDA_VISIBLE_DEVICES": "1"}


def test_processes_that_share_the_cores_take_one_slot_and_no_card(server, log):
    server.slots = 1
    with gpu_slots(4) as names:
        assert names == {}
    assert [occupy for _, occupy, _ in server.asked] == [1]


def test_more_processes_than_slots_are_refused_instead_of_waiting_for_ever(server, log, two_cards):
    server.slots = 1
    with pytest.raises(TooFewGpusError, match=r"num_processes=2 .* 'gpu', which has 1: .*gcl update gpu --limit 2`"):
        gpu_slots(2).__enter__()
    assert server.asked == []


def test_more_processes_than_cards_are_refused_instead_of_waiting_for_ever(server, log, two_cards):
    server.slots = 16
    with pytest.raises(TooFewGpusError, match=r"num_processes=3 takes as many GPUs, and this run sees 2: lower it"):
        gpu_slots(3).__enter__()
    assert server.asked == []


def test_a_wait_is_said_and_its_end_too(server, log):
    server.free.clear()
    freeing = threading.Timer(0.5, server.free.set)
    freeing.start()
    with gpu_slots(1):
        assert log == ["Waiting for a free slot of the concurrency limit 'gpu'", "Got a slot of 'gpu'"]
    freeing.join()


def test_a_wait_for_a_card_is_said_too(server, log, two_cards):
    server.slots = 3  # of several machines
    first = gpu_slots(2)
    first.__enter__()
    freeing = threading.Timer(0.5, first.__exit__, (None, None, None))
    freeing.start()
    with gpu_slots(1):
        assert log == ["Waiting for a free GPU of this machine", "Got a GPU of this machine"]
    freeing.join()


def test_what_comes_at_once_leaves_no_word_behind(server, log, two_cards):
    with gpu_slots(1):
        time.sleep(0.2)
    assert log == []


def test_a_lost_lease_is_a_clear_error(server, log):
    server.lost = True
    with pytest.raises(GpuSlotLostError, match=r"'gpu' could not be renewed .* run it again to go on"), gpu_slots(1):
        pass


def test_other_errors_pass_as_they_are(server, log):
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), gpu_slots(1):
            raise error


@pytest.mark.parametrize(
    ("limit", "slots"), [(SimpleNamespace(limit=2, active=True), 2), (SimpleNamespace(limit=2, active=False), None)]
)
def test_a_limit_that_is_switched_off_is_none(monkeypatch, limit, slots):
    @contextmanager
    def client(**_options):
        yield SimpleNamespace(read_global_concurrency_limit_by_name={"gpu": limit}.__getitem__)

    monkeypatch.setattr(gpu, "get_client", client)
    assert slots_of_limit() == slots


def test_a_server_without_the_limit_has_none(monkeypatch):
    def read(_name):
        raise ObjectNotFound(http_exc=ValueError())

    @contextmanager
    def client(**_options):
        yield SimpleNamespace(read_global_concurrency_limit_by_name=read)

    monkeypatch.setattr(gpu, "get_client", client)
    assert slots_of_limit() is None
