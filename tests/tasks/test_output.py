"""What a stage says: whole lines, their levels, the states of its progress bar, and why it failed."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tasks.output import LineLevels, Progress, Reason, Said, is_advice, progress_of, streamed

from tasks import output

INFO, WARNING, ERROR = logging.INFO, logging.WARNING, logging.ERROR


@pytest.fixture
def pieces(monkeypatch):
    """Lines of an output that comes in the given pieces, and the states of a bar between them."""

    def run(*given):
        waiting = [*given, b""]
        monkeypatch.setattr(output, "os", SimpleNamespace(read=lambda *_: waiting.pop(0)))
        said = list(streamed(SimpleNamespace(fileno=lambda: 0)))
        return [one.text for one in said if not one.is_passing], [one.text for one in said if one.is_passing]

    return run


@pytest.mark.parametrize(
    ("given", "lines"),
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
def test_lines_are_whole_however_they_come(pieces, given, lines):
    assert pieces(*given) == (lines, [])


def test_a_progress_bar_is_one_line_in_the_end(pieces):
    # As tqdm writes it: the return stands before each state.
    states = [b"\rtrain:   0%", b"\rtrain:  50%", b"\rtrain: 100%", b"\ndone\n"]
    assert pieces(*states) == (["train: 100%", "done"], ["train:   0%", "train:  50%"])
    assert pieces(b"".join(states)) == (["train: 100%", "done"], ["train:   0%", "train:  50%"])


def test_a_line_between_two_states_of_a_bar_is_a_line(pieces):
    lines, passing = pieces(b"\r10%", b"\r20%\nwarning\n\r30%", b"\r40%\n")
    assert lines == ["20%", "warning", "40%"] and passing == ["10%", "30%"]


STATE = "train:  67%|██████▋   | 16.0/24.0 [00:01<00:00, 9.59 images/s, loss=0.5926]"
ENDLESS_STATE = "a.tgz: 12.0MB [00:03, 4.0MB/s]"


@pytest.mark.parametrize("state", [STATE, ENDLESS_STATE])
def test_what_is_said_right_behind_a_state_of_a_bar_is_a_line(pieces, state):
    given = f"\r{state}tracking: warning: no\n\r{state}\r{state}\n".encode()
    assert pieces(given) == (["tracking: warning: no", state], [state, state])


def test_a_bar_and_a_line_of_a_stage_stay_apart():
    # As both really come through one pipe.
    program = """
from stages.runtime.progress import print_beside_bar, progress_bar
with progress_bar("train", 24, "images") as bar:
    bar.mininterval = bar.miniters = 0
    for step in range(3):
        bar.update(8)
        print_beside_bar(f"train: samples of step {step} in there.png")
        print(f"tracking: warning: no {step}", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        said = list(streamed(child.stdout))
    lines = [one.text for one in said if not one.is_passing and not progress_of(one.text)]
    assert lines == [
        line
        for step in range(3)
        for line in (f"train: samples of step {step} in there.png", f"tracking: warning: no {step}")
    ]  # fmt: skip
    assert [one.text for one in said if one.is_passing and not progress_of(one.text)] == []


def test_lines_come_as_soon_as_they_are_written():
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as readable:
        said = streamed(readable)
        for text in ("first", "second"):
            os.write(write_end, f"{text}\nbegun".encode())
            assert next(said).text.endswith(text)  # while the writer still holds its end
        os.close(write_end)
        assert list(said) == [Said("begun", is_passing=False)]


def test_the_bar_of_a_stage_is_understood():
    # What tqdm really writes through a pipe, at the stages' own settings.
    program = """
import time
from stages.runtime.progress import progress_bar
with progress_bar("train", 24_000, "images", initial=6_000) as bar:
    bar.mininterval = bar.miniters = 0
    for loss in (0.5, 0.25, 0.125):
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        bar.update(6_000)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=120)
    found = [progress_of(text) for text in done.stderr.decode().replace("\r", "\n").split("\n")]
    shown = [progress for progress in found if progress]
    assert [progress.percent for progress in shown][:4] == [25.0, 50.0, 75.0, 100.0]
    assert all(progress.description.startswith("train: ") for progress in shown)
    assert "12.0k/24.0k" in shown[1].description and "loss=0.5000" in shown[1].description


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train:  50%|█████     | 12.0k/24.0k [00:10<00:10, 1.20k images/s, loss=0.1]",
            Progress(50.0, "train: 12.0k/24.0k [00:10<00:10, 1.20k images/s, loss=0.1]"),
        ),
        ("102flowers.tgz:   7%|▋         | 23.1M/345M [00:02<00:31, 10MB/s]", Progress),
        ("evaluate: 100%|██████████| 64.0/64.0 [00:01<00:00, 50.0 images/s]", Progress),
        ("download: 12.0MB [00:03, 4.0MB/s]", None),  # without an end
        ("train: 50% of the images are roses", None),
        ("", None),
    ],
)
def test_only_bars_with_an_end_are_progress(text, expected):
    found = progress_of(text)
    assert isinstance(found, expected) if isinstance(expected, type) else found == expected


@pytest.mark.parametrize(
    ("lines", "levels"),
    [
        (["train: 1,000 parameters", "Stage 'train' didn't change, skipping"], [INFO, INFO]),
        (["train: error: the loss is not finite", "ERROR: failed to reproduce 'train'"], [ERROR, ERROR]),
        (["tracking: warning: MLflow did not take a record", "WARNING: stage is frozen"], [WARNING, WARNING]),
        (["train (process 3): error: no room", "on we go"], [ERROR, INFO]),
        (["train: error: params.yaml cannot be used:", "  train.num_steps: too few", "next"], [ERROR, ERROR, INFO]),
        (["/lib/x.py:12: UserWarning: old", "  x = old()", "next"], [WARNING, WARNING, INFO]),
        (
            ["Traceback (most recent call last):", '  File "x.py", line 1', "ZeroDivisionError: division", "next"],
            [ERROR, ERROR, ERROR, INFO],
        ),
        (["train: no error: all is well", "errors: none", "warnings are few"], [INFO, INFO, INFO]),
        (["  indented from the start"], [INFO]),
    ],
)
def test_a_line_has_the_level_that_it_says(lines, levels):
    of = LineLevels().of
    assert [of(line) for line in lines] == levels


def reason_of(*lines):
    levels, reason = LineLevels(), Reason()
    for line in lines:
        reason.add(levels.of(line), line)
    return str(reason)


def test_the_reason_is_what_the_stage_says_is_wrong_once():
    assert reason_of(
        "train: 1,000 parameters",
        "train: error: the loss of step 4 is not finite",
        "ERROR: failed to reproduce 'train': failed to run: python -m stages.train, exited with 1",
    ) == "the loss of step 4 is not finite"  # fmt: skip


def test_an_error_of_several_lines_is_whole():
    told = ("preprocess: error: params.yaml cannot be used:", "  preprocess.image_size: too small")
    assert reason_of(*told) == "params.yaml cannot be used:\n  preprocess.image_size: too small"


def test_what_dvc_alone_says_is_the_reason_too():
    assert reason_of("ERROR: Unable to acquire lock.") == "Unable to acquire lock."


def test_a_stage_that_told_no_error_is_known_by_its_last_lines():
    lines = [f"line {i}" for i in range(9)]
    killed = "ERROR: failed to reproduce 'train': failed to run: python -m stages.train, exited with -9"
    assert reason_of(*lines, killed).splitlines() == [*lines[2:], killed]


@pytest.mark.parametrize(
    ("line", "expected"),
    [("To track the changes with git, run:", True), ("\tgit add dvc.lock", True), ("train: done", False)],
)
def test_dvcs_advice_is_known(line, expected):
    assert is_advice(line) is expected
