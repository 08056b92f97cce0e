"""The step compiled and recorded, while the GPU tests run in another process."""

import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch

from bench.gpu.session import Session
from ddpm.devices import Compilation
from ddpm.training import train

_TESTS = Path(__file__).parents[2] / "tests/test_gpu.py"
_RESULT = re.compile(r"^\S+?::(.+?) (PASSED|FAILED|SKIPPED|ERROR)", re.MULTILINE)
_TESTS_END_AT_SECONDS = 120.0


def record(session: Session) -> None:
    """Take the first steps of the published training, and note how long each way of running takes to get going.

    The GPU tests run meanwhile, and are over when this returns: nothing is timed beside them. They decide which of the
    ways are taken from here on.
    """
    tests, output = _start_tests(session)
    recording = take_first_steps(session)
    session.report.add("record", recording)
    session.report.say(f"first steps: {recording}")
    results = _join_tests(session, tests, output)
    session.mode = choose_mode(results, bool(recording["warnings"]))
    session.report.add("mode", session.mode)
    session.report.say(f"compilation of the published run: {session.mode}")


def take_first_steps(session: Session) -> dict[str, object]:
    """Return seconds until the first and until the fifth step, their losses, and what was warned of."""
    config = session.config("auto")
    state = session.start(config)
    started, seconds, losses = time.monotonic(), [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for event in train(state, session.images(session.size.batch_size), session.diffusion, config):
            losses.append(float(event.loss))
            seconds.append(round(time.monotonic() - started, 2))
            if event.step == 5:
                break
    said = [str(each.message) for each in caught if "recorded" in str(each.message)]
    if not torch.isfinite(torch.tensor(losses)).all():
        raise RuntimeError(f"the first losses are not finite: {losses}")
    return {"seconds_to_step_1": seconds[0], "seconds_to_step_5": seconds[-1], "losses": losses, "warnings": said}


def choose_mode(results: dict[str, str], recording_failed: bool) -> Compilation:
    """Return the best way of running of which no test has failed."""
    failed = [name for name, outcome in results.items() if outcome in ("FAILED", "ERROR")]
    if any("compiled" in name for name in failed):
        return "off"
    if recording_failed or any("recorded" in name for name in failed):
        return "default"
    return "auto"


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
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=_TESTS.parents[1]), output


def _join_tests(session: Session, tests: "subprocess.Popen[bytes]", output: Path) -> dict[str, str]:
    try:
        tests.wait(max(1.0, min(_TESTS_END_AT_SECONDS - session.deadline.spent(), session.deadline.left())))
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
