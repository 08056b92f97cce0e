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

from tasks import stage
from tasks.stage import StageFailedError, end_group, run_stage, stage_environment, streamed_lines


@pytest.fixture
def streamed(monkeypatch):
    """The lines of an output that comes in the given pieces, and what is shown of its progress."""

    def run(*pieces):
        waiting = [*pieces, b""]
        shown = []
        monkeypatch.setattr(stage, "os", SimpleNamespace(read=lambda *_: waiting.pop(0)))
        monkeypatch.setattr(stage, "_LoggedBar", lambda: lambda text: shown.append(text) or [])
        lines = list(streamed_lines(SimpleNamespace(fileno=lambda: 0)))
        return lines, [text for text in shown if text]

    return run


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"o", b"n", b"e\nt", b"wo\n"], ["one", "two"]),
        ([b"one\n", b"two"], ["one", "two"]),
        ([b"one\r\ntwo\r\n"], ["one", "two"]),
        ([b"one\r", b"\ntwo\r", b"\n"], ["one", "two"]),
        ([b"one\n\n  \ntwo  \n"], ["one", "two"]),
        ([b"  indented\n"], ["  indented"]),
        ([], []),
        ([b"\n"], []),
        (["blüte\n".encode()[:3], "blüte\n".encode()[3:]], ["blüte"]),
        ([b"caf\xe9\n"], ["caf\N{REPLACEMENT CHARACTER}"]),
        ([b"a\x0bb\x1cc\n"], ["a\x0bb\x1cc"]),
    ],
)
def test_lines_are_whole_however_they_come(streamed, pieces, lines):
    assert streamed(*pieces) == (lines, [])


def test_a_progress_bar_is_one_line_in_the_end(streamed):
    # As tqdm writes it: the return stands before each state.
    states = [b"\rtrain:   0%", b"\rtrain:  50%", b"\rtrain: 100%", b"\ndone\n"]
    assert streamed(*states) == (["train: 100%", "done"], ["train:   0%", "train:  50%"])
    assert streamed(b"".join(states)) == (["train: 100%", "done"], ["train:   0%", "train:  50%"])


def test_a_line_between_two_states_of_a_bar_is_a_line(streamed):
    lines, shown = streamed(b"\r10%", b"\r20%\nwarning\n\r30%", b"\r40%\n")
    assert lines == ["20%", "warning", "40%"] and shown == ["10%", "30%"]


def test_states_of_a_bar_move_on_a_terminal_and_stay_out_of_the_log(capsys):
    assert stage._TerminalBar()("train: 50%") == []
    assert capsys.readouterr().err == "\rtrain: 50%"


def test_without_a_terminal_the_log_takes_a_state_of_the_bar_now_and_then(capsys, monkeypatch):
    bar = stage._LoggedBar()
    assert bar("train: 1%") == []
    monkeypatch.setattr(stage, "LOGGED_BAR_SECONDS", 0.0)
    assert bar("train: 2%") == ["train: 2%"]
    assert bar("") == []
    assert capsys.readouterr().err == ""


def test_prefect_logs_a_failed_stage_without_a_traceback(caplog):
    logger = logging.getLogger("prefect.flow_runs")
    for error, expected in ((StageFailedError("stage train failed"), None), (KeyError("a bug"), KeyError)):
        record = logger.makeRecord("x", logging.ERROR, "x", 1, "failed", (), (type(error), error, None))
        assert logger.filter(record)
        assert (record.exc_info and record.exc_info[0]) == expected


def test_lines_come_as_soon_as_they_are_written():
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as output:
        lines = streamed_lines(output)
        for text in ("first", "second"):
            os.write(write_end, f"{text}\nbegun".encode())
            assert next(lines).endswith(text)  # while the writer still holds its end
        os.close(write_end)
        assert list(lines) == ["begun"]


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


def test_the_grace_period_is_long_enough_for_a_checkpoint():
    assert stage.GRACE_SECONDS >= 30.0


def test_the_environment_of_a_stage(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    monkeypatch.setattr(stage, "flow_run", SimpleNamespace(name="wise-owl", id="123"))
    before = dict(os.environ)
    environment = stage_environment()
    # `python` in dvc.yaml means this interpreter.
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    assert environment["DDPM_WATCH_PID"] == str(os.getpid())
    assert environment["DDPM_PREFECT_FLOW_RUN"] == "wise-owl (123)"
    assert environment["PYTHONUNBUFFERED"] == "1" and environment["DVC_NO_ANALYTICS"] == "true"
    assert environment["MLFLOW_TRACKING_URI"] == "http://server:5000"
    assert dict(os.environ) == before


def test_the_names_of_the_variables_are_those_that_the_stages_read():
    # Tasks import no stage, so the names stand twice.
    from stages.lineage import PREFECT_RUN_VARIABLE
    from stages.runner import WATCH_PID_VARIABLE

    assert {PREFECT_RUN_VARIABLE, WATCH_PID_VARIABLE} <= set(stage_environment())


class Log:
    def __init__(self):
        self.lines = []

    def info(self, line):
        self.lines.append(line)


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
    lines = str(caught.value).splitlines()
    assert lines == ["stage train failed:", *(f"line {i}" for i in range(3, 10)), "ERROR: failed to reproduce"]
    assert len(log.lines) == 10


@pytest.mark.usefixtures("interruptible")
def test_a_cancelled_task_takes_its_stage_with_it(log, dvc, tmp_path, monkeypatch):
    dvc(f"trap 'echo interrupted > {tmp_path}/end; exit 75' INT; echo ready; while :; do sleep 0.05; done")

    def cancel(_line):
        raise KeyboardInterrupt

    monkeypatch.setattr(log, "info", cancel)
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
    with (tmp_path / "lock").open("w") as kept, (tmp_path / "other").open("w") as other:
        os.set_inheritable(kept.fileno(), True)
        dvc(
            f"for number in {kept.fileno()} {other.fileno()}; do [ -e /proc/$$/fd/$number ] && echo $number; done; true"
        )
        run_stage("train")
        assert log.lines == [str(kept.fileno())]
