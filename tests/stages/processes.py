"""Stages as DVC starts them: processes of their own, each in a folder."""

import os
import subprocess
import sys
import time

from tests.small_experiment import PROJECT


class StageProcess(subprocess.Popen):
    """A stage that runs in a folder."""

    def __init__(self, stage, folder):
        self.log = folder / f"{stage}.log"
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "DDPM_TRACKING": "off"}
        command = [sys.executable, "-m", f"stages.{stage}"]
        with self.log.open("w") as log:
            super().__init__(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def words(self):
        """All that it has said."""
        return self.log.read_text()

    def wait_until(self, condition, seconds=250.0):
        """Return as soon as the condition holds, while the stage runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.poll() is None and time.monotonic() < end, self.words
            time.sleep(0.01)


def steps_kept(folder):
    """List the steps of all checkpoints."""
    paths = sorted((folder / "build/checkpoints").glob("*/step_*.safetensors"))
    return [int(path.stem.removeprefix("step_")) for path in paths]
