"""Which cards a run sees, and that no two claims share one."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from tasks.cards import claimed, visible_cards

from tasks import cards as module

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


@pytest.fixture
def cards(two_cards):
    return visible_cards({})


def test_all_cards_are_seen_by_their_uuids(cards):
    # Not by number: CUDA may count them otherwise than the driver.
    assert cards == {"GPU-rose": "GPU-rose", "GPU-tulip": "GPU-tulip"}


def test_parts_of_a_card_are_no_cards(driver):
    driver("GPU 0: NVIDIA H100 (UUID: GPU-rose)", "  MIG 1g.10gb Device 0: (UUID: MIG-leaf)")
    assert list(visible_cards({})) == ["GPU-rose"]


def test_without_a_driver_there_are_none(driver, monkeypatch, tmp_path):
    driver("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.")
    assert visible_cards({}) == {}
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert visible_cards({}) == visible_cards({"CUDA_VISIBLE_DEVICES": "0"}) == {}


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("1", {"1": "GPU-tulip"}),
        ("1, 0", {"1": "GPU-tulip", "0": "GPU-rose"}),
        ("GPU-tu", {"GPU-tu": "GPU-tulip"}),  # a beginning is enough
        ("MIG-leaf", {"MIG-leaf": "MIG-leaf"}),
        ("0,2,1", {"0": "GPU-rose"}),  # an unknown one hides those after it
        ("-1", {}),
        ("", {}),
    ],
)
def test_those_that_the_worker_was_started_with_are_seen_under_its_names(two_cards, given, seen):
    assert visible_cards({"CUDA_VISIBLE_DEVICES": given}) == seen


def test_two_claims_get_different_cards_and_a_third_waits_until_one_is_free(cards):
    third = []

    def claim():
        with claimed(cards, 1) as names:
            third.append(names)

    waiting = threading.Thread(target=claim)
    with claimed(cards, 1) as first:
        with claimed(cards, 1) as second:
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive() and third == []
        waiting.join(10.0)
    assert [first, second] == [{"CUDA_VISIBLE_DEVICES": "GPU-rose"}, {"CUDA_VISIBLE_DEVICES": "GPU-tulip"}]
    assert third == [second]


def test_a_claim_of_several_takes_all_or_none(cards):
    with claimed(cards, 1):
        assert module._claim(cards, 2) is None
        with claimed(cards, 1):  # what it found free, it has left so
            pass
    with claimed(cards, 2) as names:
        assert names == {"CUDA_VISIBLE_DEVICES": "GPU-rose,GPU-tulip"}


def test_a_card_has_one_holder_by_whatever_name(two_cards):
    by_number = visible_cards({"CUDA_VISIBLE_DEVICES": "0,1"})
    with claimed(by_number, 1) as first, claimed(visible_cards({}), 1) as second:
        assert first == {"CUDA_VISIBLE_DEVICES": "0"} and second == {"CUDA_VISIBLE_DEVICES": "GPU-tulip"}
        assert module._claim(by_number, 1) is None


HOLD = """
import subprocess, sys, time
from tasks.cards import claimed, visible_cards
with claimed(visible_cards({}), 2):
    stage = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, close_fds=False)
    print(stage.pid, flush=True)
    time.sleep(60)
"""


def test_a_killed_flow_leaves_its_cards_to_its_stage_and_that_to_others(cards, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path)}
    with ExitStack() as started:
        flow = subprocess.Popen(
            [sys.executable, "-c", HOLD], env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        started.callback(flow.communicate)
        started.callback(flow.kill)
        stage = int(flow.stdout.readline())
        end_of_stage = started.enter_context(ExitStack())
        end_of_stage.callback(os.kill, stage, signal.SIGKILL)
        assert module._claim(cards, 1) is None
        flow.kill()
        flow.wait()
        assert module._claim(cards, 1) is None
        end_of_stage.close()
        with claimed(cards, 2):
            pass
