"""A slot of the limit around a stage: where there is a limit, and what its log and its loss lead to."""

import asyncio
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from uuid import uuid4

import pytest

from tasks import gpu
from tasks.gpu import GpuSlotLostError, gpu_slot


class Server:
    """Slots of a limit, or no limit."""

    def __init__(self):
        self.exists, self.free, self.asked, self.lost = True, threading.Event(), [], False
        self.free.set()

    @contextmanager
    def concurrency(self, name, **options):
        self.asked.append((name, options))
        assert self.free.wait(10)
        yield
        if self.lost:
            raise asyncio.CancelledError


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(gpu, "concurrency", made.concurrency)
    monkeypatch.setattr(gpu, "has_limit", lambda: made.exists)
    monkeypatch.setattr(gpu, "task_run", SimpleNamespace(id=uuid4()))
    monkeypatch.setattr(gpu, "NOTICE_SECONDS", 0.05)
    return made


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(
        gpu, "get_run_logger", lambda: SimpleNamespace(info=lambda text, *values: lines.append(text % values))
    )
    return lines


def test_a_slot_is_held_by_the_task_with_a_lease_that_ends_soon_and_is_not_lost_silently(server, log):
    with gpu_slot():
        ((name, options),) = server.asked
    assert name == "gpu"
    assert options["lease_duration"] == 60.0  # the least that a server takes
    assert options["raise_on_lease_renewal_failure"] is True
    assert (options["holder"].type, options["holder"].id) == ("task_run", gpu.task_run.id)
    assert log == []


def test_where_there_is_no_limit_the_block_just_runs(server, log):
    server.exists, ran = False, []
    with gpu_slot():
        ran.append(True)
    assert ran and server.asked == [] and log == []


def test_a_wait_is_said_and_its_end_too(server, log):
    server.free.clear()
    freeing = threading.Timer(0.5, server.free.set)
    freeing.start()
    with gpu_slot():
        assert log == ["Waiting for a free slot of the concurrency limit 'gpu'", "Got a slot of 'gpu'"]
    freeing.join()


def test_a_slot_that_comes_at_once_leaves_no_word_behind(server, log):
    with gpu_slot():
        time.sleep(0.2)
    assert log == []


def test_a_lost_lease_is_a_clear_error(server, log):
    server.lost = True
    with pytest.raises(GpuSlotLostError, match=r"'gpu' could not be renewed .* run it again to go on"), gpu_slot():
        pass


def test_other_errors_pass_as_they_are(server, log):
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), gpu_slot():
            raise error
