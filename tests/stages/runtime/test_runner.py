"""How a stage starts and ends: parameters kept, one line of error, and the exit status."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from contract.errors import StageError
from contract.params import read_params
from ddpm.checkpoint import CheckpointError
from stages.runtime import runner
from stages.runtime.runner import EXIT_ERROR, EXIT_INTERRUPTED, Interrupted, interruption_deferred, run_stage


@pytest.fixture(autouse=True)
def place(folder, write_params, signal_handlers):
    write_params()
    return folder


@pytest.fixture
def ended(capsys):
    """Runs a stage that ends the process, and gives its exit status and what it said on standard error."""

    def run(stage, name="train"):
        with pytest.raises(SystemExit) as caught:
            run_stage(name, stage)
        return caught.value.code, capsys.readouterr().err

    return run


def raising(error):
    def stage(_params):
        raise error

    return stage


def signal_and_wait(number):
    def stage(_params):
        os.kill(os.getpid(), number)
        time.sleep(30.0)

    return stage


def test_a_stage_gets_the_parameters_in_force():
    got = []
    run_stage("train", got.append)
    assert got == [read_params()]


@pytest.mark.parametrize("error", [StageError("the roses have wilted"), CheckpointError("the roses have wilted")])
def test_an_error_is_one_line_and_status_1(ended, error):
    assert ended(raising(error)) == (EXIT_ERROR, "train: error: the roses have wilted\n")
    assert EXIT_ERROR == 1


def test_an_error_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_stage("train", lambda _params: 1 // 0)


def test_parameters_that_cannot_be_used_are_one_clear_error(ended, write_params):
    write_params({"train.num_steps": 0})
    status, words = ended(lambda _params: pytest.fail("nothing is to be run"))
    assert status == 1
    assert words.splitlines() == [
        "train: error: params.yaml cannot be used:",
        "    train.num_steps: Input should be greater than or equal to 1, got 0",
    ]


def test_a_change_of_its_own_section_meanwhile_is_an_error(ended, write_params):
    # DVC reads the file when the stage has ended, and would record what the stage never saw.
    status, words = ended(lambda _params: write_params({"train.num_steps": 7}))
    assert (status, words) == (
        1,
        "train: error: params.yaml changed while train ran, so nothing is recorded: run it again\n",
    )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("evaluate", {"evaluate.seed": 7}),
        ("evaluate", {"reference.max_images_per_split": 12}),
        ("reference", {"evaluate.enabled": False}),
    ],
)
def test_so_is_one_of_another_section_that_it_reads(write_params, capsys, name, changes):
    write_params()
    with pytest.raises(SystemExit):
        run_stage(name, lambda _params: write_params(changes))
    assert f"{name}: error: params.yaml changed while {name} ran" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes", [{"sample.seed": 7}, {"profile": "another"}, {"train.learning_rate": 2e-3}, {"register.enabled": False}]
)
def test_any_other_change_is_none(write_params, changes, capsys):
    write_params({"train.learning_rate": 0.002})
    got = []

    def stage(params):
        got.append(params)
        write_params(changes)

    run_stage("train", stage)  # which would end by SystemExit
    assert [params.train.learning_rate for params in got] == [0.002]
    assert read_params() != got[0] or changes == {"train.learning_rate": 2e-3}  # the same number in other words
    assert capsys.readouterr().err == ""


def test_a_file_spoilt_meanwhile_is_an_error(ended):
    status, words = ended(lambda _params: Path("params.yaml").write_text("train: ["))
    assert status == 1 and words.startswith("train: error: params.yaml is not YAML")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_with_status_75(ended, number):
    assert ended(signal_and_wait(number)) == (
        EXIT_INTERRUPTED,
        f"train: warning: interrupted by {number.name}; run it again to go on\n",
    )
    assert EXIT_INTERRUPTED == 75


def test_a_second_signal_does_not_break_the_leaving(ended):
    cleaned = []

    def stage(_params):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30.0)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    assert ended(stage) == (75, "train: warning: interrupted by SIGTERM; run it again to go on\n")
    assert cleaned == [True]


def test_an_interruption_is_swallowed_by_no_handler_of_errors(ended):
    def stage(_params):
        try:
            signal_and_wait(signal.SIGTERM)(None)
        except Exception:
            pytest.fail("the interruption was taken for an error")

    assert ended(stage)[0] == 75


def test_deferred_a_signal_interrupts_nothing_until_it_is_asked_for():
    with interruption_deferred() as interruption:
        assert interruption() is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption() == "SIGTERM"  # the first one


def test_after_a_deferral_without_a_signal_signals_interrupt_again(ended):
    def stage(_params):
        with interruption_deferred():
            pass
        signal_and_wait(signal.SIGTERM)(None)

    assert ended(stage)[0] == 75


def test_after_a_deferred_signal_another_does_not_break_the_leaving(ended):
    left = []

    def stage(_params):
        with interruption_deferred() as interruption:
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        left.append(True)
        raise Interrupted(f"{interruption()} between two steps")

    assert ended(stage) == (75, "train: warning: SIGTERM between two steps\n")
    assert left == [True]


def test_the_death_of_the_watched_process_interrupts(ended, monkeypatch):
    watched = subprocess.Popen(["sleep", "60"])
    monkeypatch.setenv(runner.WATCH_PID_VARIABLE, str(watched.pid))

    def stage(_params):
        watched.kill()
        watched.wait()
        time.sleep(30.0)

    started = time.monotonic()
    assert ended(stage) == (75, "train: warning: interrupted by SIGTERM; run it again to go on\n")
    assert time.monotonic() - started < 10.0


def test_nothing_is_watched_unless_asked_for(monkeypatch):
    before = threading.active_count()
    run_stage("train", lambda _params: None)
    assert threading.active_count() == before


def test_the_watch_keeps_no_stage_alive(monkeypatch):
    # What it watches goes on to the next stage.
    made = []

    class Thread:
        def __init__(self, **options):
            made.append(options)

        def start(self):
            made.append("started")

    monkeypatch.setattr(runner.threading, "Thread", Thread)
    monkeypatch.setenv(runner.WATCH_PID_VARIABLE, str(os.getpid()))
    run_stage("train", lambda _params: None)
    options, started = made
    assert options["daemon"] is True and started == "started"
