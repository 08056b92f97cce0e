"""Which slots a machine has, and that no two stages compute in one."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tasks import gpus
from tasks.gpus import GpuSlotsError, find_gpus, hold_slots

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(gpus, "POLL_SECONDS", 0.01)


@pytest.fixture
def must_wait():
    """Whether another run that needs so many slots now waits for them."""

    def ask(number=1, seconds=0.2):
        got = threading.Event()

        def claim():
            with hold_slots(number):
                got.set()

        threads.append(threading.Thread(target=claim, daemon=True))
        threads[-1].start()
        return not got.wait(seconds)

    threads = []
    yield ask
    for thread in threads:
        thread.join(10.0)


def test_without_a_driver_there_are_no_gpus(driver, monkeypatch, tmp_path):
    driver("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.")
    assert find_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert find_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert find_gpus() == []


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-rose", "GPU-tulip"]),
        ("1", ["GPU-tulip"]),
        ("1, 0", ["GPU-tulip", "GPU-rose"]),
        ("GPU-tu", ["GPU-tulip"]),  # a beginning is enough
        ("MIG-leaf", ["MIG-leaf"]),
        ("0,2,1", ["GPU-rose"]),  # an unknown one hides those after it
        ("-1", []),
        ("", []),
    ],
)
def test_gpus_are_those_that_cuda_would_see(two_gpus, monkeypatch, visible, expected):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpus() == expected


def test_two_runs_get_different_gpus_and_a_third_waits(two_gpus, must_wait):
    with hold_slots(1) as first:
        with hold_slots(1) as second:
            assert must_wait()
        with hold_slots(1) as third:
            assert third == second
    assert [first, second] == [{"CUDA_VISIBLE_DEVICES": "GPU-rose"}, {"CUDA_VISIBLE_DEVICES": "GPU-tulip"}]


def test_a_run_takes_all_its_gpus(two_gpus, must_wait):
    with hold_slots(2) as both:
        assert both == {"CUDA_VISIBLE_DEVICES": "GPU-rose,GPU-tulip"} and must_wait()


def test_runs_on_one_gpu_do_not_overtake_one_that_waits_for_two(two_gpus, must_wait):
    with hold_slots(1):
        assert must_wait(2) and must_wait(1)


def test_a_run_that_waits_keeps_no_other_from_gpus_that_it_may_not_use(two_gpus, must_wait, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with hold_slots(1):
        assert must_wait()
        for visible in ("1", "0,1"):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            assert not must_wait(seconds=10.0)


def test_two_runs_on_two_gpus_each_get_them_in_turn(two_gpus, must_wait):
    with hold_slots(1):
        waiting = [must_wait(2), must_wait(2)]
    assert waiting == [True, True] and not must_wait(2, seconds=10.0)


def test_a_run_with_nothing_to_compute_waits_for_no_gpu(two_gpus, must_wait, monkeypatch):
    monkeypatch.setattr(gpus, "NOTICE_SECONDS", 0.01)
    with hold_slots(1) as rose:
        with hold_slots(2, has_work=lambda: False) as variables:
            assert variables == {} and not must_wait(1, seconds=10.0), "it keeps no GPU from the others either"
        assert rose == {"CUDA_VISIBLE_DEVICES": "GPU-rose"}


def test_a_gpu_has_one_holder_under_whatever_name(two_gpus, monkeypatch):
    with hold_slots(1) as first:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        with hold_slots(1) as second:
            assert (first, second) == ({"CUDA_VISIBLE_DEVICES": "GPU-rose"}, {"CUDA_VISIBLE_DEVICES": "GPU-tulip"})


def test_fewer_slots_than_gpus_leave_gpus_to_others(two_gpus, must_wait, monkeypatch):
    monkeypatch.setenv("DDPM_GPU_SLOTS", "1")
    with hold_slots(1):
        assert must_wait()


def test_without_a_gpu_all_processes_of_a_run_share_one_slot(driver, must_wait, monkeypatch):
    driver("No devices were found")
    with hold_slots(4) as variables:
        assert variables == {} and must_wait()
    monkeypatch.setenv("DDPM_GPU_SLOTS", "2")
    with hold_slots(1), hold_slots(1):
        pass


@pytest.mark.parametrize("slots", ["", "1"])
def test_more_processes_than_gpus_are_refused_at_once(two_gpus, monkeypatch, slots):
    monkeypatch.setenv("DDPM_GPU_SLOTS", slots)
    number = int(slots or 2)
    with pytest.raises(GpuSlotsError, match=rf"num_processes={number + 1} .* may use {number}"):
        hold_slots(number + 1).__enter__()


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_a_number_of_slots_that_is_none_is_an_error(two_gpus, monkeypatch, number):
    monkeypatch.setenv("DDPM_GPU_SLOTS", number)
    with pytest.raises(GpuSlotsError, match=f"DDPM_GPU_SLOTS must be a number from 1, got '{number}'"):
        hold_slots(1).__enter__()


def test_the_locks_do_not_move_with_the_variables_of_a_session(two_gpus, monkeypatch, tmp_path):
    monkeypatch.delenv("DDPM_SLOTS_FOLDER")
    folders = {gpus.make_folder()}
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
        folders.add(gpus.make_folder())
    assert len(folders) == 1


def test_the_locks_of_a_user_whom_the_system_does_not_know_lie_in_home(two_gpus, monkeypatch, tmp_path):
    monkeypatch.delenv("DDPM_SLOTS_FOLDER")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert gpus.make_folder().is_relative_to(tmp_path)


def test_a_folder_that_cannot_be_made_is_a_clear_error(two_gpus, monkeypatch, tmp_path):
    monkeypatch.setenv("DDPM_SLOTS_FOLDER", str(tmp_path / "nvidia-smi" / "slots"))
    with pytest.raises(GpuSlotsError, match="DDPM_SLOTS_FOLDER"):
        hold_slots(1).__enter__()


HOLD = """
import subprocess, time
from tasks.gpus import hold_slots
with hold_slots(2):
    stage = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, close_fds=False)
    print(stage.pid, flush=True)
    time.sleep(60)
"""


def test_a_killed_flow_leaves_its_gpus_to_its_stage_and_that_to_others(two_gpus, must_wait, tmp_path):
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
        flow.kill()
        flow.wait()
        assert must_wait()
        end_of_stage.close()
        with hold_slots(2):
            pass
