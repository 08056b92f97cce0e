"""Variants take turns: on a CPU each in its own lasting process, on a GPU all in this one."""

import importlib
import os
import time
from functools import partial
from types import SimpleNamespace

import psutil
import pytest
import torch

from bench import turns
from bench.machine import require_bfloat16
from bench.turns import Timings, time_in_turn
from ddpm import devices

CPU = torch.device("cpu")
GPU = torch.device("cuda")

RECORDED = "with open({path!r}, 'a') as file: print(__import__('os').getpid(), file=file)"
ENDS_AT_THE_SECOND_CALL = "calls.append(1); len(calls) == 2 and __import__('os')._exit(3)"


def builder(function, *arguments):
    """A builder that another process can import, of a variant that calls the function."""
    return partial(partial, function, *arguments)


def recorder(path):
    """A builder whose variant writes down, at each call, the process that it runs in."""
    return builder(exec, RECORDED.format(path=str(path)))


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Stand-in for a GPU, which returns these amounts of allocated memory and these peaks in turn."""

    def install(allocated=(), peaks=()):
        allocated, peaks = iter(allocated), iter(peaks)
        monkeypatch.setattr(turns, "synchronize", lambda _: None)
        monkeypatch.setattr(turns, "reset_peak_memory", lambda _: None)
        monkeypatch.setattr(turns, "allocated_gib", lambda _: next(allocated, 0.0))
        monkeypatch.setattr(turns, "peak_memory_gib", lambda _: next(peaks, 0.0))

    return install


def test_each_variant_keeps_its_process_and_missing_packages_are_left_out(tmp_path, capsys):
    builders = {
        "one": recorder(tmp_path / "one"),
        "keras": partial(importlib.import_module, "no_such_keras"),
        "other": recorder(tmp_path / "other"),
    }
    timings = time_in_turn(builders, CPU, num_rounds=2)
    one, other = ((tmp_path / name).read_text().split() for name in ("one", "other"))
    assert len(one) == len(other) == 3  # one call to warm up, and one a round
    assert len(set(one)) == len(set(other)) == 1
    assert len({os.getpid(), int(one[0]), int(other[0])}) == 3
    assert [len(seconds) for seconds in timings.seconds.values()] == [2, 2]
    assert all(peak > 0.0 for peak in timings.peak_memory_gib.values())
    assert timings.left_out == {"keras": "No module named 'no_such_keras'"}
    printed = capsys.readouterr().out
    assert "left out: keras (No module named 'no_such_keras')" in printed
    assert "building 3 of 3: other" in printed and "round 2 of 2: other, " in printed


def test_with_too_little_memory_each_turn_has_a_new_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    time_in_turn({"large": recorder(tmp_path / "pids")}, CPU, num_rounds=1)
    warm_up, *turn = (tmp_path / "pids").read_text().split()
    assert len(turn) == 2 and warm_up not in turn
    assert "too little memory" in capsys.readouterr().out


def test_a_process_that_is_ended_is_named():
    with pytest.raises(RuntimeError, match="the process of 'gone' was ended"):
        time_in_turn({"gone": builder(exec, ENDS_AT_THE_SECOND_CALL, {"calls": []})}, CPU, num_rounds=1)


def test_on_a_gpu_all_are_built_once_in_this_process(pretended_gpu):
    pretended_gpu()
    calls = []

    def build(name):
        calls.append(f"build {name}")
        return lambda: calls.append(name)

    timings = time_in_turn({name: partial(build, name) for name in ("one", "other")}, GPU, num_rounds=2)
    assert calls == ["build one", "one", "build other", "other", "one", "other", "one", "other"]
    assert list(timings.seconds) == ["one", "other"]


def test_memory_that_other_variants_keep_on_a_gpu_does_not_count(pretended_gpu):
    # Before and after each build, before each turn; the peaks of the turns.
    pretended_gpu(allocated=[0.0, 1.0, 1.0, 3.0, 3.0, 3.0], peaks=[7.0, 9.0])
    builders = {name: builder(time.sleep, 0.0) for name in ("keeps 1", "keeps 2")}
    timings = time_in_turn(builders, GPU, num_rounds=1)
    assert timings.peak_memory_gib == {"keeps 1": 7.0 - 2.0, "keeps 2": 9.0 - 1.0}


def test_a_variant_on_a_gpu_does_not_profit_from_the_settings_of_another(pretended_gpu, monkeypatch):
    pretended_gpu()
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)  # as best_device leaves it
    seen = []

    def build(is_chosen):
        if is_chosen:
            cudnn.benchmark = True
        return lambda: seen.append(cudnn.benchmark)

    time_in_turn({"chosen": partial(build, True), "as shipped": partial(build, False)}, GPU, num_rounds=1)
    assert seen == [True, False, True, False]


def test_no_round_begins_that_would_end_too_late(pretended_gpu, monkeypatch, capsys):
    pretended_gpu()
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    now = [0.0]

    def last_a_minute():
        now[0] += 60.0

    # Warm after one minute; a round ends after two, three and four, and the next would after five.
    timings = time_in_turn({"slow": lambda: last_a_minute}, GPU, num_rounds=9, num_minutes=5.0)
    assert timings.seconds == {"slow": [60.0, 60.0, 60.0]}
    assert "3 of 9 rounds: another would not end within --minutes 5" in capsys.readouterr().out


def test_one_round_of_the_first_variant_is_done_in_any_case(pretended_gpu):
    pretended_gpu()
    builders = {name: builder(time.sleep, 0.0) for name in ("first", "second")}
    timings = time_in_turn(builders, GPU, num_rounds=3, num_minutes=0.0)
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"first": 1}
    assert timings.left_out == {"second": "half of --minutes 0 was over before it could be built"}


def test_emulated_bfloat16_is_left_out(pretended_gpu, monkeypatch, capsys):
    pretended_gpu()
    monkeypatch.setattr(devices, "_has_fast_bfloat16", lambda _: False)
    builders = {"fp32": builder(time.sleep, 0.0), "bf16": partial(require_bfloat16, CPU)}
    assert list(time_in_turn(builders, GPU, num_rounds=1).seconds) == ["fp32"]
    reason = "this CPU has no bf16 instructions; emulated ones would take minutes a step"
    assert f"left out: bf16 ({reason})" in capsys.readouterr().out


def test_a_ratio_is_the_median_of_the_rounds():
    timings = Timings(seconds={"one": [2.0, 9.0, 8.0], "other": [1.0, 3.0, 2.0]})
    assert timings.ratio("one", "other") == 3.0
    assert timings.median("one") == 8.0
