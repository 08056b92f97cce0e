"""Two runs of the same experiment take turns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.runtime.alone import work_alone_in

PROJECT = Path(__file__).parents[3]

WORK = """
import sys
from pathlib import Path
from stages.runtime.alone import work_alone_in
with work_alone_in(Path("shared"), "train"):
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
    assert "another run of the same experiment works in shared" in second.stdout.readline()
    if is_killed:
        first.kill()
    else:
        first.communicate("end\n")
    assert second.stdout.readline() == "begins\n"
    assert second.communicate("end\n")[0] == "ends\n"


def test_one_alone_waits_for_nobody_and_says_nothing(tmp_path, capsys):
    for _ in range(2):
        with work_alone_in(tmp_path / "shared", "train"):
            pass
    assert capsys.readouterr().out == ""


TOGETHER = """
from pathlib import Path
from ddpm.distributed import process_group, rank
from stages.runtime.alone import work_alone_in
with process_group(), work_alone_in(Path("shared"), "train"):
    Path(f"seen_by_{rank()}").write_text(Path("shared/checkpoint").read_text())
"""


def test_processes_that_work_as_one_all_wait_for_the_first_to_have_the_lock(worker, tmp_path):
    # They would go on from different checkpoints, if one read them while another run still writes.
    (tmp_path / "together.py").write_text(TOGETHER)
    before = worker()
    assert before.stdout.readline() == "begins\n"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "together.py"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as job:
        try:
            assert job.stdout.readline().startswith("train: another run of the same experiment works in shared")
            assert list(tmp_path.glob("seen_by_*")) == []
            (tmp_path / "shared/checkpoint").write_text("step 4")
            before.communicate("end\n")
            assert job.communicate(timeout=120.0)[0] == "" and job.returncode == 0
        finally:
            job.kill()
    assert [(tmp_path / f"seen_by_{number}").read_text() for number in range(2)] == ["step 4", "step 4"]
