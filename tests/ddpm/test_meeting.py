"""The processes of a job meet at the place that their environment names, or say what is missing."""

import signal
import socket

import pytest
import torch.distributed as dist

from ddpm.distributed import local_rank, process_group
from ddpm.meeting import MeetingError, is_started_by_torchrun

PLACE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of torchrun; None stands for one that is not there."""

    def change(changes):
        for name, value in ({"LOCAL_RANK": None} | PLACE | changes).items():
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)

    return change


ALONE = {"MASTER_ADDR": None, "MASTER_PORT": None}


@pytest.mark.parametrize(
    ("changes", "started"),
    [
        ({}, True),
        ({"WORLD_SIZE": "1"}, True),
        ({"WORLD_SIZE": "1"} | ALONE, False),
        ({"RANK": None, "WORLD_SIZE": None} | ALONE, False),
        ({"RANK": None, "WORLD_SIZE": None, "LOCAL_RANK": "1"}, False),
    ],
)
def test_torchrun_is_known_by_its_environment(environment, changes, started):
    environment(changes)
    assert is_started_by_torchrun() is started
    if not started:
        with process_group():
            assert not dist.is_initialized() and local_rank() == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RANK": None}, "WORLD_SIZE=2 is set, and RANK is not: set both, as torchrun does, or unset WORLD_SIZE"),
        ({"WORLD_SIZE": None}, "RANK=0 is set, and WORLD_SIZE is not: set both, as torchrun does, or unset RANK"),
        (ALONE, "MASTER_ADDR is missing beside RANK=0 and WORLD_SIZE=2: set it, as torchrun does, or unset RANK and"),
        ({"MASTER_PORT": None}, "MASTER_PORT is missing"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is missing"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT must be a number, 0 … 65535, got '65536'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT must be a number, 0 … 65535, got 'http'"),
        ({"RANK": "one"}, "RANK must be a number, at least 0, got 'one'"),
        ({"RANK": "-1"}, "RANK must be a number, at least 0, got '-1'"),
        ({"RANK": "2"}, "RANK=2 must be less than WORLD_SIZE=2"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a number, at least 1, got '0'"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE must be a number"),
        ({"LOCAL_RANK": "one"}, "LOCAL_RANK must be a number, at least 0, got 'one'"),
    ],
)
def test_variables_that_name_no_meeting_are_one_line(environment, changes, words):
    environment(changes)
    with pytest.raises(MeetingError) as caught, process_group():
        pytest.fail("it joined")
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "process 0 of 2 waits at localhost:0 (MASTER_ADDR:MASTER_PORT) for process 1"),
        ({"WORLD_SIZE": "4"}, "process 0 of 4 waits at localhost:0 (MASTER_ADDR:MASTER_PORT) for processes 1, 2, 3"),
        (
            {"RANK": "1"},
            "process 1 of 2 waits at localhost:0 (MASTER_ADDR:MASTER_PORT) for process 0, which is to listen",
        ),
        (
            {"RANK": "1", "MASTER_ADDR": "no host"},
            "process 1 of 2 waits at no host:0 (MASTER_ADDR:MASTER_PORT) for process 0",
        ),
    ],
)
def test_a_process_says_whom_it_waits_for_and_ends_in_time(environment, monkeypatch, changes, words):
    environment(changes)
    monkeypatch.setattr("ddpm.meeting.FIRST_WORD_SECONDS", 0.0)
    monkeypatch.setattr("ddpm.meeting.MEETING_SECONDS", 0.5)
    said = []
    with pytest.raises(MeetingError) as caught, process_group(said.append):
        pytest.fail("it joined")
    assert len(said) == 1 and said[0].startswith(words)
    assert "has waited 0 s at " in str(caught.value) and "start all WORLD_SIZE=" in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"RANK": "1"}])
def test_a_signal_ends_the_wait(environment, changes):
    class SignalError(Exception):
        pass

    def heed(*_):
        raise SignalError

    environment(changes)
    before = signal.signal(signal.SIGALRM, heed)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(SignalError), process_group():
            pytest.fail("it joined")
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_place_that_is_taken_is_one_line(environment):
    with socket.create_server(("localhost", 0)) as server:
        environment({"MASTER_PORT": str(server.getsockname()[1])})
        with pytest.raises(MeetingError, match=r"process 0 cannot meet the others at ") as caught, process_group():
            pytest.fail("it joined")
    assert "\n" not in str(caught.value)
