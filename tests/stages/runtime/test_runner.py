"""Start and end of a stage: parameters kept, one clear error, and the exit status."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from contract.errors import StageError
from contract.events import Failed, Message, parse_event
from contract.params import read_params
from ddpm.checkpoint import CheckpointError
from stages.runtime.interruption import Interrupted, defer_interruption
from stages.runtime.reporting import fail, say
from stages.runtime.runner import run_stage
from tests.small_experiment import unset


@pytest.fixture(autouse=True)
def place(folder, write_params, signal_handlers):
    write_params()
    return folder


@pytest.fixture
def ended(capfd):
    """Runs a stage that ends the process, and gives its exit status and what it printed."""

    def run(stage, name="train"):
        with pytest.raises(SystemExit) as caught:
            run_stage(name, stage)
        printed = capfd.readouterr()
        return caught.value.code, printed.out + printed.err

    return run


@pytest.fixture
def events(place, monkeypatch):
    """The events that a task would read."""
    path = place / "events"
    path.touch()
    monkeypatch.setenv("DDPM_EVENTS", str(path))
    return lambda: [parse_event(line) for line in path.read_text().splitlines()]


class PassingError(StageError):
    is_transient = True


def raising(error):
    def stage(_params):
        raise error

    return stage


def signal_and_wait(number):
    def stage(_params):
        os.kill(os.getpid(), number)
        time.sleep(30.0)

    return stage


@pytest.mark.parametrize(
    ("error", "printed", "event"),
    [
        (StageError("no roses"), "no roses", Failed("no roses", is_transient=False)),
        (CheckpointError("no roses"), "no roses", Failed("no roses", is_transient=False)),
        (PassingError("timed out\nagain"), "timed out\n  again", Failed("timed out\nagain", is_transient=True)),
        (
            OSError(errno.ENOSPC, "No space left on device", "build/model/raw.safetensors"),
            "build/model/raw.safetensors: No space left on device; make room, then run it again",
            Failed("build/model/raw.safetensors: No space left on device; make room, then run it again", False),
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "build/dataset/dataset.json"),
            "build/dataset/dataset.json: No such file or directory",
            Failed("build/dataset/dataset.json: No such file or directory", is_transient=False),
        ),
    ],
)
def test_an_error_is_status_1_and_a_line_or_an_event(ended, request, error, printed, event):
    assert ended(raising(error)) == (1, f"train: error: {printed}\n")
    events = request.getfixturevalue("events")
    assert ended(raising(error)) == (1, "")
    assert events() == [event]


def test_one_of_several_processes_gives_its_number(monkeypatch, capfd, events):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    fail("train", "no roses")
    monkeypatch.delenv("DDPM_EVENTS")
    fail("train", "no roses")
    assert events() == [Failed("process 3: no roses", is_transient=False)]
    assert capfd.readouterr().err == "train: error: process 3: no roses\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_a_full_or_locked_disk_is_one_line_even_if_the_file_is_unknown(ended, place, number):
    status, line = ended(raising(OSError(number, os.strerror(number))))
    assert status == 1 and line.startswith(f"train: error: a file below {place}: {os.strerror(number)}; ")
    assert line.endswith(", then run it again\n") and line.count("\n") == 1


@pytest.mark.parametrize("rank", ["0", "1", "x"])
def test_a_stage_that_works_alone_asks_no_other_process_and_is_the_first(monkeypatch, events, rank):
    monkeypatch.setenv("RANK", rank)  # as a batch system sets them; there is no process to meet
    monkeypatch.setenv("WORLD_SIZE", "2")
    run_stage("download", lambda _params: say("download", "done"))
    assert events() == [Message("info", "download: done")]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "MASTER_ADDR is missing beside RANK=0 and WORLD_SIZE=2",
        ),
        ({"RANK": "1"}, "RANK=1 is set, and WORLD_SIZE is not: set both, as torchrun does, or unset RANK"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK must be a number, at least 0, got 'x'"),
    ],
)
def test_a_meeting_that_cannot_be_is_one_line(monkeypatch, capfd, variables, words):
    unset(monkeypatch, "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="1"):
        run_stage("train", lambda _params: pytest.fail("the stage ran"), lambda params: params.train.num_processes)
    said = capfd.readouterr().err
    assert said.startswith(f"train: error: {words}") and said.count("\n") == 1


def test_an_error_of_the_program_keeps_its_traceback(events):
    with pytest.raises(ZeroDivisionError):
        run_stage("train", lambda _params: 1 // 0)
    assert events() == [Failed("ZeroDivisionError: integer division or modulo by zero", is_transient=False)]


def test_a_warning_of_a_library_is_a_message(events, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run_stage("train", lambda _params: warnings.warn("the disk is nearly full", stacklevel=1))
    assert events() == [Message("warning", "train: warning: the disk is nearly full")]


def test_parameters_that_cannot_be_used_are_one_clear_error(ended, write_params):
    write_params({"train.num_steps": 0})
    status, words = ended(lambda _params: pytest.fail("the stage ran"))
    assert status == 1 and words.startswith("train: error: params.yaml cannot be used")
    assert "train.num_steps" in words and "got 0" in words


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("train", {"train.num_steps": 7}),
        ("evaluate", {"evaluate.seed": 7}),
        ("evaluate", {"reference.max_images_per_split": 12}),
        ("reference", {"evaluate.enabled": False}),
    ],
)
def test_a_change_meanwhile_of_what_the_stage_reads_is_an_error(ended, write_params, name, changes):
    # DVC reads the file when the stage has ended, and would record what the stage never saw.
    status, words = ended(lambda _params: write_params(changes), name)
    assert status == 1 and f"params.yaml changed while {name} ran" in words


@pytest.mark.parametrize(
    "changes", [{"sample.seed": 7}, {"profile": "another"}, {"train.learning_rate": 2e-3}, {"register.enabled": False}]
)
def test_any_other_change_is_none(write_params, events, changes):
    write_params({"train.learning_rate": 0.002})
    before, ran_with = read_params(), []

    def stage(params):
        write_params({"train.learning_rate": 0.002} | changes)
        ran_with.append(params)

    run_stage("train", stage)  # returns, where a failed stage ends the process
    assert ran_with == [before] and events() == []


def test_a_file_spoilt_meanwhile_is_an_error(ended):
    status, words = ended(lambda _params: Path("params.yaml").write_text("train: ["))
    assert status == 1 and words.startswith("train: error: params.yaml is not YAML")


def test_results_that_would_lie_outside_of_the_project_are_refused_first(ended):
    Path("build").symlink_to("/tmp")
    status, words = ended(lambda _params: pytest.fail("the stage ran"))
    assert status == 1 and words.startswith("train: error: build is a link to /tmp, and DVC keeps no results outside")


DEPENDENCIES = """
stages:
  train:
    deps: [stages/train.py, ddpm, build/dataset: {hash: md5}, build/gone]
"""


@pytest.fixture
def dependencies(place):
    """The files of a stage in a folder with dvc.yaml."""
    for name in ("stages/train.py", "ddpm/ema.py", "ddpm/samplers/step.py", "build/dataset/images.npy", "README.md"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("one")
    Path("dvc.yaml").write_text(DEPENDENCIES)
    Path(".dvcignore").write_text("*.log\n")


def write(name, content="two"):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(content)


def edit_unnoticed():
    before = Path("ddpm/ema.py").stat()
    write("ddpm/ema.py")
    os.utime("ddpm/ema.py", ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda: write("stages/train.py"), "stages/train.py"),
        (lambda: write("ddpm/samplers/step.py"), "ddpm/samplers/step.py"),
        (lambda: write("build/dataset/images.npy"), "build/dataset/images.npy"),
        (edit_unnoticed, "ddpm/ema.py"),  # of the same size, with the same time
        (lambda: write("ddpm/new.py"), "ddpm/new.py"),
        (lambda: write("build/gone"), "build/gone"),
        (lambda: Path("ddpm/ema.py").unlink(), "ddpm/ema.py"),
        (lambda: shutil.rmtree("ddpm"), "ddpm/ema.py, ddpm/samplers/step.py"),
        (lambda: [write(f"ddpm/{number}.py") for number in range(5)], "ddpm/0.py, ddpm/1.py, ddpm/2.py"),
    ],
)
def test_a_dependency_edited_meanwhile_is_an_error(ended, dependencies, edit, names):
    # DVC hashes it when the stage has ended, and would record what the stage never saw.
    status, words = ended(lambda _params: edit())
    more = " and 2 more" if "2.py" in names else ""
    assert (status, words) == (
        1,
        f"train: error: {names}{more} changed while train ran, so nothing is recorded: run it again; with the files as "
        "they were, it takes up its finished checkpoint and trains nothing again\n",
    )


@pytest.mark.parametrize(
    "edit",
    [
        lambda: Path("ddpm/ema.py").touch(),
        lambda: write("ddpm/ema.py", "one"),
        lambda: Path(shutil.copy("ddpm/ema.py", "copy")).replace("ddpm/ema.py") and None,
        lambda: write("ddpm/__pycache__/ema.pyc"),
        lambda: write("ddpm/train.log"),
        lambda: write("README.md"),
        lambda: Path("dvc.yaml").unlink(),
    ],
    ids=["touched", "saved", "replaced", "compiled", "ignored by DVC", "no dependency", "no dvc.yaml"],
)
def test_dependencies_with_the_same_bytes_are_no_error(dependencies, events, edit):
    run_stage("train", lambda _params: edit())
    assert events() == []


def test_code_edited_while_it_was_imported_is_an_error(ended, dependencies, monkeypatch):
    module = ModuleType("ddpm.ema")
    module.__file__ = str(Path("ddpm/ema.py").absolute())  # younger than this process
    monkeypatch.setitem(sys.modules, "an edited module", module)
    status, words = ended(lambda _params: pytest.fail("the stage ran"))
    assert status == 1
    assert words == "train: error: ddpm/ema.py changed while train started, so nothing is recorded: run it again\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_imports_is_one_line_and_status_75(place, project, number):
    Path("torch.py").write_text(f"import os; os.kill(os.getpid(), {number:d}); raise RuntimeError")
    environment = os.environ | {"PYTHONPATH": f"{place}:{project}"}
    command = [sys.executable, "-m", "stages.train"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = f"train: warning: interrupted by {number.name} before anything began\n"
    assert (done.returncode, done.stdout + done.stderr) == (75, said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_with_status_75(ended, number):
    message = f"train: warning: interrupted by {number.name}; run it again to go on\n"
    assert ended(signal_and_wait(number)) == (75, message)


def test_a_second_signal_does_not_break_the_leaving(ended):
    cleaned = []

    def stage(_params):
        try:
            signal_and_wait(signal.SIGTERM)(None)
        except Exception:
            pytest.fail("the interruption was taken for an error")
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    assert ended(stage) == (75, "train: warning: interrupted by SIGTERM; run it again to go on\n")
    assert cleaned == [True]


def test_deferred_signals_interrupt_nothing_until_asked_for(ended):
    def stage(_params):
        with defer_interruption() as interruption:
            assert interruption() is None
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        raise Interrupted(f"{interruption()} between two steps")  # the first one

    assert ended(stage) == (75, "train: warning: SIGTERM between two steps\n")


def test_after_a_deferral_without_a_signal_signals_interrupt_again(ended):
    def stage(_params):
        with defer_interruption():
            pass
        signal_and_wait(signal.SIGTERM)(None)

    assert ended(stage)[0] == 75


@pytest.mark.parametrize("is_dead_before", [False, True])
def test_the_death_of_the_watched_process_interrupts(ended, monkeypatch, is_dead_before):
    with subprocess.Popen(["sleep", "60"]) as watched:
        monkeypatch.setenv("DDPM_WATCH_PID", str(watched.pid))

        def stage(_params):
            watched.kill()
            for _ in range(600):  # a signal that comes as a sleep begins wakes the next one
                time.sleep(0.1)
            pytest.fail("nothing interrupted the stage")

        if is_dead_before:
            watched.kill()
            watched.wait()
        assert ended(stage)[0] == 75
