"""Two runs of the same experiment take turns."""

import os
import subprocess
import sys

import pytest

from stages.runtime.alone import work_alone_in
from tests.small_experiment import PROJECT

WORK = """
import os
import sys
from pathlib import Path
from ddpm.distributed import process_group, rank
from stages.runtime.alone import work_alone_in
with process_group(), work_alone_in(Path("shared"), "train"):
    # One call for each line: two processes write to one pipe.
    os.write(1, f"process {rank()} begins\\n".encode())
    sys.stdin.readline()
"""
PYTHON = [sys.executable]
TOGETHER = [*PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def start(tmp_path):
    """Starts a program that works in the folder until it gets a line, its input ends, or it is killed."""
    (tmp_path / "work.py").write_text(WORK)
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = []

    def start(command):
        process = subprocess.Popen(
            [*command, "work.py"],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("command", "numbers", "is_killed"), [(PYTHON, [0], False), (TOGETHER, [0, 1], True)])
def test_the_next_run_waits_for_the_end_of_the_first_however_it_comes(start, command, numbers, is_killed):
    # Processes that work as one would go on from different checkpoints, if one read them while another run writes.
    first = start(PYTHON)
    assert first.stdout.readline() == "process 0 begins\n"
    second = start(command)
    assert second.stdout.readline().startswith("train: another run of the same experiment works in shared")
    if is_killed:
        first.kill()
    else:
        first.communicate("end\n")
    assert sorted(second.stdout.readline() for _ in numbers) == [f"process {number} begins\n" for number in numbers]


def test_one_alone_waits_for_nobody_and_says_nothing(tmp_path, capsys):
    for _ in range(2):
        with work_alone_in(tmp_path / "shared", "train"):
            pass
    assert capsys.readouterr().out == ""
