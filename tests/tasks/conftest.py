"""What the tests of tasks share."""

import pytest


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Makes a machine whose NVIDIA driver lists what it is told to, and whose cards nobody has claimed yet."""

    def install(*lines):
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return install


@pytest.fixture
def two_cards(driver):
    """A machine with two cards."""
    driver("GPU 0: NVIDIA H100 (UUID: GPU-rose)", "GPU 1: NVIDIA H100 (UUID: GPU-tulip)")
