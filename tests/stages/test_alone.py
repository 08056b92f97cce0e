"""Two runs of the same experiment take turns."""

import subprocess
import sys
from pathlib import Path

import pytest

from stages import alone
from stages.alone import alone_in

PROJECT = Path(__file__).parents[2]

WORK = """
import sys, time
from pathlib import Path
from stages.alone import alone_in
with alone_in(Path("shared"), "train"):
    print("begins", flush=True)
    sys.stdin.readline()
    print("ends", flush=True)
"""


@pytest.fixture
def worker(tmp_path):
    """Starts another process that works in the folder until it is told to end, or is killed."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", WORK],
            cwd=tmp_path,
            env={"PYTHONPATH": str(PROJECT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("is_killed", [False, True])
def test_the_second_waits_for_the_end_of_the_first_however_it_comes(worker, is_killed):
    first = worker()
    assert first.stdout.readline() == "begins\n"
    second = worker()
    assert second.stdout.readline() == (
        "train: another run of the same experiment works in shared; waiting for its end\n"
    )
    if is_killed:
        first.kill()
    else:
        first.communicate("end\n")
    assert second.stdout.readline() == "begins\n"
    assert second.communicate("end\n")[0] == "ends\n"


def test_one_alone_waits_for_nobody_and_says_nothing(tmp_path, capsys):
    for _ in range(2):
        with alone_in(tmp_path / "shared", "train"):
            pass
    assert capsys.readouterr().out == ""


def test_the_first_of_several_processes_waits_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(alone, "is_first", lambda: False)
    with alone_in(tmp_path / "shared", "train"):
        assert not (tmp_path / "shared").exists()
