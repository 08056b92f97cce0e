"""Compile and record the step while the GPU tests run in another process."""

import os
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.gpu.session import Session
from ddpm.config import Compilation
from ddpm.training import train

_TESTS = Path(__file__).parents[2] / "tests/test_gpu.py"
_RESULT = re.compile(r"^\S+?::(.+?) (PASSED|FAILED|SKIPPED|ERROR)", re.MULTILINE)


def record(session: Session) -> None:
    """Take the first steps of the published training, compiled and then recorded, and note how long each takes.

    The GPU tests run meanwhile, and are over before anything is recorded here: a recording that fails spoils the
    process in which it does, so it is to fail in theirs. They decide which ways of running are taken from here on.
    """
    tests, output = _start_tests(session)
    attempts: list[dict[str, object]] = []
    try:
        attempts += take_first_steps(session, ["default", "off"] if session.device.type == "cuda" else ["off"])
    finally:
        results = _join_tests(session, tests, output)
        session.mode = "off"
    works: Compilation = "off" if attempts[-1]["compilation"] == "off" else "default"
    mode = choose_mode(results)
    if mode == "auto":
        attempts += take_first_steps(session, ["auto", works])
        mode = "auto" if attempts[-1]["compilation"] == "auto" else works
    session.mode = "off" if works == "off" and mode == "default" else mode
    session.report.add("record", attempts)
    session.report.add("mode", session.mode)
    session.report.say(f"first steps: {attempts}\ncompilation of the published run: {session.mode}")


def take_first_steps(session: Session, ways: Sequence[Compilation]) -> list[dict[str, object]]:
    """Take five steps in each mode until one works, and return the outcome of each attempt.

    Raises:
        Exception: none of them works; the last one's error.
    """
    attempts: list[dict[str, object]] = []
    for way in ways:
        try:
            attempts.append(_take_five_steps(session, way))
            return attempts
        except Exception as error:
            session.report.say(traceback.format_exc())
            attempts.append({"compilation": way, "failed": f"{type(error).__name__}: {error}"[:300]})
            if way == ways[-1]:
                raise
    return attempts


def _take_five_steps(session: Session, way: Compilation) -> dict[str, object]:
    config = session.config(way)
    state = session.start(config)
    started, seconds, losses = time.monotonic(), [], []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*cannot be recorded.*")
        for event in train(state, session.images(session.size.batch_size), session.diffusion, config):
            losses.append(float(event.loss))
            seconds.append(round(time.monotonic() - started, 2))
            if event.step == 5:
                break
    if not torch.isfinite(torch.tensor(losses)).all():
        raise RuntimeError(f"the first losses are not finite: {losses}")
    return {"compilation": way, "seconds_to_step_1": seconds[0], "seconds_to_step_5": seconds[-1], "losses": losses}


def choose_mode(results: dict[str, str]) -> Compilation:
    """Return the fastest mode without a failed test; failed tests of recorded steps rule out only recording."""
    failed = [name for name, outcome in results.items() if outcome in ("FAILED", "ERROR")]
    if any("compiled" in name and "recorded" not in name for name in failed):
        return "off"
    return "default" if any("recorded" in name for name in failed) else "auto"


def parse_results(text: str) -> dict[str, str]:
    """Return the outcome of each test in the output of `pytest -v`."""
    return dict(_RESULT.findall(text))


def _start_tests(session: Session) -> tuple["subprocess.Popen[bytes]", Path]:
    output = session.keep / "tests.txt"
    environment = os.environ | {"FLOWERS_TEST_DEVICE": session.device.type, "PYTHONUNBUFFERED": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(_TESTS),
        "-v",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "--tb=short",
    ]
    with output.open("wb") as file:
        tests = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=_TESTS.parents[1])
    session.children.append(tests)
    return tests, output


def _join_tests(session: Session, tests: "subprocess.Popen[bytes]", output: Path) -> dict[str, str]:
    try:
        tests.wait(max(1.0, min(session.tests_end_at - session.deadline.spent(), session.deadline.left())))
        end = f"status {tests.returncode}"
    except subprocess.TimeoutExpired:
        tests.kill()
        tests.wait()
        end = "stopped: their time was over"
    text = output.read_text(errors="replace")
    results = parse_results(text)
    counts = {outcome: list(results.values()).count(outcome) for outcome in sorted(set(results.values()))}
    session.report.add("tests", {"end": end, "counts": counts, "results": results})
    session.report.say(f"GPU tests: {counts}, {end}")
    if tests.returncode != 0:
        session.report.say(text[-20_000:])
    return results
