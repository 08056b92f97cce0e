"""One DVC stage as a child: its output line by line, and its end."""

import logging
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tasks.output import Said

from contract.params import ParamsError
from tasks import stage
from tasks.stage import StageFailedError, StageLog, end_group, run_stage, stage_environment


class Log:
    """Keeps what would go to the Prefect log."""

    def __init__(self):
        self.records = []

    @property
    def lines(self):
        return [line for _, line in self.records]

    def log(self, level, line):
        self.records.append((level, line))

    def info(self, line):
        self.log(logging.INFO, line)

    def warning(self, line):
        self.log(logging.WARNING, line)


def test_states_of_a_bar_move_on_a_terminal_and_stay_out_of_the_log(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log = Log()
    StageLog(log).take(Said("train: 50%", is_passing=True))
    assert capsys.readouterr().err == "\rtrain: 50%" and log.lines == []


def test_without_a_terminal_the_log_takes_a_state_of_the_bar_now_and_then(capsys, monkeypatch):
    log = Log()
    stage_log = StageLog(log)
    stage_log.take(Said("train: 1%", is_passing=True))
    assert log.lines == []
    monkeypatch.setattr(stage, "LOGGED_BAR_SECONDS", 0.0)
    stage_log.take(Said("train: 2%", is_passing=True))
    assert log.records == [(logging.INFO, "train: 2%")]
    assert capsys.readouterr().err == ""


def prefect_record(message, error=None):
    exc_info = (type(error), error, None) if error else None
    return logging.getLogger("prefect.flow_runs").makeRecord("x", logging.ERROR, "x", 1, message, (), exc_info)


@pytest.mark.parametrize("name", ["prefect.flow_runs", "prefect.task_runs"])
def test_prefect_does_not_log_again_why_a_stage_failed(name):
    logger, failed = logging.getLogger(name), StageFailedError("stage train failed: no roses")
    assert not logger.filter(prefect_record("Task run failed with exception", failed))
    bug = prefect_record("Task run failed with exception", KeyError("a bug"))
    assert logger.filter(bug) and bug.exc_info[0] is KeyError
    for message in (
        "Finished in state Failed('Task run encountered an exception StageFailedError: stage train failed: no roses')",
        "Finished in state Failed('Flow run encountered an exception: StageFailedError: stage train failed: no roses')",
    ):
        record = prefect_record(message)
        assert logger.filter(record)
        assert record.getMessage() == "Finished in state Failed: a stage has failed, as it says above"
    unusable = prefect_record("Encountered exception during execution: %r", ParamsError("no such\n  parameter"))
    assert logger.filter(unusable) and unusable.getMessage() == "no such\n  parameter" and unusable.exc_info is None
    other = prefect_record("Finished in state Failed('KeyError: %s')")
    assert logger.filter(other) and other.getMessage() == "Finished in state Failed('KeyError: %s')"


class Family:
    """A child of its own group and a grandchild, and a pipe that both hold open while they live."""

    def __init__(self, child):
        self.alive, held = os.pipe()
        os.set_inheritable(held, True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", child],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=False,
        )
        os.close(held)
        assert self.process.stdout.readline() == b"ready\n"

    def is_gone(self):
        # Where the last holder of its other end is gone, a pipe has an end to be read.
        ready, _, _ = select.select([self.alive], [], [], 5.0)
        return bool(ready) and os.read(self.alive, 1) == b""


@pytest.fixture
def family():
    families = []

    def start(child):
        families.append(Family(child))
        return families[-1]

    yield start
    for one in families:
        os.close(one.alive)
        one.process.stdout.close()
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
{before}
print("ready", flush=True)
time.sleep(60)
"""
GRANDCHILD = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], close_fds=False)"


def test_a_stubborn_family_is_killed_after_the_grace_period(family):
    # What ignores the signal passes that on to its children.
    one = family(STUBBORN.format(before=GRANDCHILD))
    started = time.monotonic()
    end_group(one.process, grace_seconds=0.3)
    assert 0.25 < time.monotonic() - started < 10.0
    assert one.process.returncode == -signal.SIGKILL and one.is_gone()


def test_a_grandchild_does_not_outlive_its_parent(family):
    leaves = "signal.signal(signal.SIGINT, lambda *_: sys.exit(3))"
    one = family(STUBBORN.format(before=f"{GRANDCHILD}\n{leaves}"))
    end_group(one.process, grace_seconds=2.0)
    assert one.process.returncode == 3 and one.is_gone()


def test_a_stage_may_save_its_work_in_the_grace_period(family, tmp_path):
    saves = f"""
def save(*_):
    time.sleep(0.2)
    open({str(tmp_path / "saved")!r}, "w").write("all of it")
    sys.exit(75)
signal.signal(signal.SIGINT, save)
"""
    one = family(STUBBORN.format(before=saves))
    started = time.monotonic()
    end_group(one.process, grace_seconds=30.0)
    assert time.monotonic() - started < 10.0  # it is not waited out
    assert one.process.returncode == 75 and one.is_gone() and (tmp_path / "saved").read_text() == "all of it"


def test_more_output_than_a_pipe_holds_does_not_stop_the_leaving(family):
    talks = """
def talk(*_):
    print("x" * 500_000, flush=True)
    sys.exit(75)
signal.signal(signal.SIGINT, talk)
"""
    one = family(STUBBORN.format(before=talks))
    end_group(one.process, grace_seconds=30.0)
    assert one.process.returncode == 75


def test_ending_what_has_ended_is_no_error(family):
    one = family("print('ready', flush=True)")
    one.process.wait()
    end_group(one.process, grace_seconds=0.3)
    assert one.process.returncode == 0


def test_the_environment_of_a_stage(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    monkeypatch.setattr(stage, "flow_run", SimpleNamespace(name="wise-owl", id="123", tags=["a", "sweep:owls"]))
    before = dict(os.environ)
    environment = stage_environment()
    # `python` in dvc.yaml means this interpreter.
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    assert environment["DDPM_WATCH_PID"] == str(os.getpid())
    assert environment["DDPM_PREFECT_FLOW_RUN"] == "wise-owl (123)"
    assert environment["DDPM_SWEEP"] == "owls"
    assert environment["PYTHONUNBUFFERED"] == "1" and environment["DVC_NO_ANALYTICS"] == "true"
    assert environment["MLFLOW_TRACKING_URI"] == "http://server:5000"
    assert dict(os.environ) == before


def test_the_names_of_the_variables_are_those_that_the_stages_read(monkeypatch):
    # Tasks import no stage, so the names stand twice.
    from stages.runtime.runner import WATCH_PID_VARIABLE
    from tracking.lineage import PREFECT_RUN_VARIABLE, SWEEP_VARIABLE

    assert {PREFECT_RUN_VARIABLE, WATCH_PID_VARIABLE} <= set(stage_environment())
    assert SWEEP_VARIABLE not in stage_environment()
    monkeypatch.setattr(stage, "flow_run", SimpleNamespace(name="wise-owl", id="123", tags=["sweep:owls"]))
    assert SWEEP_VARIABLE in stage_environment()


@pytest.fixture
def log(monkeypatch):
    """What goes to the Prefect log."""
    kept = Log()
    monkeypatch.setattr(stage, "get_run_logger", lambda: kept)
    return kept


@pytest.fixture
def dvc(tmp_path, monkeypatch):
    """Puts a shell script in the place of the interpreter that runs DVC."""

    def put(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


def test_a_stage_is_brought_up_to_date_by_dvc(log, dvc):
    dvc('echo "$@"; echo "to the error stream" >&2')
    run_stage("train")
    assert log.lines == ["-m dvc repro --single-item train", "to the error stream"]


def test_dvcs_advice_is_left_out(log, dvc):
    dvc("""printf "Stage 'x' didn't change\\n\\nTo track the changes with git, run:\\n\\n\\tgit add dvc.lock\\n" """)
    run_stage("train")
    assert log.lines == ["Stage 'x' didn't change"]


def test_a_failure_holds_the_last_lines(log, dvc):
    dvc("for i in 1 2 3 4 5 6 7 8 9; do echo line $i; done; echo 'ERROR: failed to reproduce'; exit 255")
    with pytest.raises(StageFailedError) as caught:
        run_stage("train")
    first, *lines = str(caught.value).splitlines()
    assert first == "stage train failed: line 3" and lines[:-1] == [f"line {i}" for i in range(4, 10)]
    assert len(log.lines) == 10


def test_a_failure_says_why_and_the_log_has_it_as_an_error_once(log, dvc):
    dvc("echo 'train: 8 images'; echo 'train: error: no roses' >&2; echo 'ERROR: failed to reproduce it'; exit 1")
    with pytest.raises(StageFailedError, match=r"^stage train failed: no roses$"):
        run_stage("train")
    assert log.records == [
        (logging.INFO, "train: 8 images"),
        (logging.ERROR, "train: error: no roses"),
        (logging.ERROR, "ERROR: failed to reproduce it"),
    ]


@pytest.mark.usefixtures("interruptible")
def test_a_cancelled_task_takes_its_stage_with_it(log, dvc, tmp_path, monkeypatch):
    dvc(f"trap 'echo interrupted > {tmp_path}/end; exit 75' INT; echo ready; while :; do sleep 0.05; done")

    def cancel(_level, _line):
        raise KeyboardInterrupt

    monkeypatch.setattr(log, "log", cancel)
    with pytest.raises(KeyboardInterrupt):
        run_stage("train")
    assert (tmp_path / "end").read_text() == "interrupted\n"


def test_the_stage_is_in_a_group_of_its_own(log, dvc):
    # The terminal's Ctrl-C reaches it only through the task.
    dvc("ps -o pid= -o pgid= -p $$ 2>/dev/null || cut -d ' ' -f 1,5 /proc/$$/stat")
    run_stage("train")
    pid, group = log.lines[0].split()
    assert pid == group != str(os.getpgrp())


def test_a_lock_that_is_made_inheritable_lasts_as_long_as_the_stage(log, dvc, tmp_path):
    with (tmp_path / "lock").open("w") as kept, (tmp_path / "other").open("w"):
        os.set_inheritable(kept.fileno(), True)
        dvc("readlink /proc/$$/fd/* | grep -e '/lock$' -e '/other$'; true")
        run_stage("train")
        assert log.lines == [str(tmp_path / "lock")]


def test_the_stage_gets_variables_of_its_own_besides(log, dvc, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    dvc('echo "$CUDA_VISIBLE_DEVICES $PYTHONUNBUFFERED"')
    run_stage("train", {"CUDA_VISIBLE_DEVICES": "1"})
    run_stage("train")
    assert log.lines == ["1 1", "0,1 1"] and os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
