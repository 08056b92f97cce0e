"""One DVC stage as a child: what it says, why it fails, and its end."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from contract.events import Failed, Message, Progress
from tasks import stage
from tasks.stage import StageFailedError, StageReport, Tail, end_group, follow_stage, stage_environment
from tests.seams.checkout import wait_until

INFO, WARNING, ERROR = logging.INFO, logging.WARNING, logging.ERROR


@pytest.fixture
def report():
    return StageReport(logging.getLogger("test"), SimpleNamespace(take=lambda _event: None))  # without a page


@pytest.fixture
def run(report, log, dvc):
    """Runs the stage `train` by a script in DVC's place; gives the levels and lines of the log."""

    def follow(script, variables=None):
        dvc(script)
        try:
            follow_stage("train", report, variables or {})
        finally:
            lines = [(record.levelno, record.getMessage()) for record in log]
        return lines

    return follow


def event(one):
    """A line of shell by which a stage emits an event."""
    return f"printf '%s\\n' '{json.dumps({'kind': type(one).__name__} | vars(one))}' >> $DDPM_EVENTS"


def test_a_stage_is_brought_up_to_date_by_dvc(run):
    lines = run('echo "$@"; echo "to the error stream" >&2; printf "no line end"')
    assert lines == [
        (INFO, "-m dvc repro --single-item train"), (INFO, "to the error stream"), (INFO, "no line end"),
    ]  # fmt: skip


def test_dvcs_advice_and_passing_states_of_a_librarys_bar_are_left_out(run):
    advice = "Stage 'x' didn't change\\n\\nTo track the changes with git, run:\\n\\n\\tgit add dvc.lock\\n"
    assert run(f'printf "{advice}"; printf "\\r10 %%\\r20 %%\\n"') == [
        (INFO, "Stage 'x' didn't change"),
        (INFO, "20 %"),
    ]


def test_messages_have_their_levels_and_broken_events_are_skipped(run):
    messages = [Message("info", "train: 8 images"), Message("warning", "train: warning: few"), Message("error", "no")]
    lines = run("\n".join([event(messages[0]), "echo '{\"kind\"' >> $DDPM_EVENTS", *map(event, messages[1:])]))
    assert lines == [(INFO, "train: 8 images"), (WARNING, "train: warning: few"), (ERROR, "no")]


def test_a_file_that_grows_is_read_line_by_line(tmp_path):
    tail = Tail(tmp_path / "output")
    with tail.path.open("wb", buffering=0) as file:
        shown = []
        for piece in ("one\ntw", "o\nbl\u00fc".encode()[:-1], b"\xbc\n", b"caf\xe9\n", b"rest"):
            file.write(piece.encode() if isinstance(piece, str) else piece)
            shown.append([line for line in tail.read_lines() if line])
    assert shown == [["one"], ["two"], ["blü"], ["caf\N{REPLACEMENT CHARACTER}"], []]
    assert tail.read_lines(is_complete=True) == ["rest"]


BAR = Progress("train: 50/100 [00:10<00:10, 1.2 images/s]", 50.0)


def test_without_a_terminal_the_log_takes_a_bar_at_intervals_and_last(report, log, run, monkeypatch):
    end = Progress("train: 100/100 [00:20<00:00, 1.2 images/s]", 100.0)
    assert run(f"{event(BAR)}\n{event(end)}") == [(INFO, f"{end.text}, 100 %")]
    monkeypatch.setattr(stage, "LOGGED_BAR_SECONDS", 0.0)
    assert run(event(BAR))[-1] == (INFO, f"{BAR.text}, 50 %")


def test_on_a_terminal_the_bar_moves_and_stays_out_of_the_log(run, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run(f"{event(BAR)}\n{event(Progress('download: 12.0MB [00:03, 4.0MB/s]', None))}") == []
    shown = capsys.readouterr().err
    assert f"{BAR.text}, 50 %" in shown and "12.0MB [00:03, 4.0MB/s]" in shown and "\n" not in shown


def failure(run, script):
    with pytest.raises(StageFailedError) as caught:
        run(script)
    return caught.value


def test_a_failure_says_why_in_the_stages_words(run, log):
    reasons = [Failed("no roses", is_transient=False), Failed("process 1: no tulips\n  at all", is_transient=True)]
    error = failure(run, "\n".join([*map(event, reasons), "echo 'ERROR: failed to reproduce'; exit 1"]))
    assert str(error) == "stage train failed: no roses\nprocess 1: no tulips\n  at all"
    assert error.is_transient
    assert [record.getMessage() for record in log if record.levelno == ERROR] == [str(error)]


def test_a_stage_that_was_killed_is_known_by_its_last_lines(run):
    last = event(Message("info", "train: 9 images"))
    error = failure(run, f"for i in 1 2 3 4 5 6 7 8 9; do echo line $i; done; {last}; kill -KILL $$")
    *lines, end = str(error).removeprefix("stage train failed: ").splitlines()
    assert lines == [f"line {i}" for i in range(3, 10)] and end == "train: 9 images" and not error.is_transient


def test_the_stage_has_its_own_variables_and_the_contracts(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    script = 'echo "$CUDA_VISIBLE_DEVICES $PYTHONUNBUFFERED $DVC_NO_ANALYTICS $DDPM_WATCH_PID $MLFLOW_TRACKING_URI"'
    (shown,) = run(script, {"CUDA_VISIBLE_DEVICES": "1"})
    assert shown == (INFO, f"1 1 true {os.getpid()} http://server:5000")
    # `python` in dvc.yaml means this interpreter.
    assert stage_environment(Path("events"))["PATH"] == f"{Path(sys.executable).parent}:/usr/bin:/bin"


def test_an_inheritable_lock_lasts_as_long_as_the_stage(run, tmp_path):
    with (tmp_path / "lock").open("w") as kept, (tmp_path / "other").open("w"):
        os.set_inheritable(kept.fileno(), True)
        assert run("readlink /proc/$$/fd/* | grep -e '/lock$' -e '/other$'; true") == [(INFO, str(tmp_path / "lock"))]


@pytest.mark.usefixtures("interruptible")
def test_a_cancelled_task_lets_its_stage_save_and_logs_its_last_words(report, log, dvc):
    dvc("trap 'echo saved; exit 75' INT; echo ready; while :; do sleep 0.05; done")

    def cancel(record):
        if record.getMessage() == "ready":
            raise KeyboardInterrupt
        return True

    logging.getLogger("test").addFilter(cancel)
    with pytest.raises(KeyboardInterrupt):
        follow_stage("train", report, {})
    logging.getLogger("test").removeFilter(cancel)
    assert [record.getMessage() for record in log] == ["saved"]


@pytest.fixture
def start_child():
    """Starts a program as the leader of its own group, and waits until it is ready."""
    started = []

    def start(program):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
        started.append(child)
        assert child.stdout.readline() == b"ready\n"
        return child

    yield start
    for child in started:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def wait_for_end(process):
    def has_ended():
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    wait_until(has_ended, f"the end of {process}", seconds=5)


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)  # ignores the signal as well
{then}
print("ready", flush=True)
time.sleep(60)
"""


def test_a_stubborn_family_is_killed_after_the_grace_period(start_child):
    child = start_child(STUBBORN.format(then=""))
    (grandchild,) = psutil.Process(child.pid).children()
    started = time.monotonic()
    end_group(child, grace_seconds=0.3)
    assert time.monotonic() - started > 0.25 and child.returncode == -signal.SIGKILL
    wait_for_end(grandchild)


def test_a_grandchild_does_not_outlive_its_parent(start_child):
    child = start_child(STUBBORN.format(then="signal.signal(signal.SIGINT, lambda *_: sys.exit(3))"))
    (grandchild,) = psutil.Process(child.pid).children()
    end_group(child, grace_seconds=20.0)
    assert child.returncode == 3
    wait_for_end(grandchild)


def test_ending_what_has_ended_is_no_error(start_child):
    child = start_child("print('ready', flush=True)")
    child.wait()
    end_group(child, grace_seconds=0.3)
    assert child.returncode == 0
