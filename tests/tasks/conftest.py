"""A machine with given GPUs, a script in DVC's place, and what tasks write to the log."""

import logging
import sys

import pytest
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Makes a machine whose `nvidia-smi` prints the given lines, and whose slots are free."""

    def install(*lines):
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("DDPM_GPU_SLOTS", raising=False)
    monkeypatch.setenv("DDPM_SLOTS_FOLDER", str(tmp_path / "slots"))
    return install


@pytest.fixture
def two_gpus(driver):
    driver("GPU-rose", "GPU-tulip")


@pytest.fixture
def dvc(tmp_path, monkeypatch):
    """Puts a shell script in the place of the interpreter that runs DVC."""

    def put(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return put


@pytest.fixture
def log():
    """The records that tasks and flows write to their run's log, and those of the logger `test`."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("prefect.task_runs", "prefect.flow_runs", "test")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture(scope="session")
def prefect_server():
    """A Prefect server of the tests' own."""
    with prefect_test_harness(server_startup_timeout=120):
        yield
