"""A checkout of the project in a folder of its own, and commands in it that always end."""

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from ruamel.yaml import YAML

STAGES = ["download", "preprocess", "reference", "train", "sample", "evaluate", "register"]
ENDLESS = dict.fromkeys(("num_steps", "sample_every", "checkpoint_every"), 10_000_000) | {"log_every": 20}
"""Training that would take days; only an interruption makes it save."""
RUNAWAY = {"train.learning_rate": 1.0, "train.unet.num_res_blocks": 8, "train.num_steps": 12}
"""Allowed, but after five steps weights so large that no number holds what so many blocks make of an image."""
BEHIND_A_DEAD_PROXY = {"http_proxy": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}
"""Variables of a proxy at which nobody listens."""
_OURS = ("PREFECT_", "MLFLOW_", "DDPM_", "DVC_", "GIT_")


def command(name: str, *arguments: str) -> list[str]:
    """Return the words that start a command of the project, such as "run" or "sweep"."""
    return [sys.executable, "-m", "flows.cli", name, *arguments]


def clean_environment(home: Path, **variables: str) -> dict[str, str]:
    """Return the caller's environment without settings of the tools, with this interpreter first on PATH."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    identity = {"NAME": "Flora", "EMAIL": "flora@example.org"}
    return environment | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        "PREFECT_HOME": str(home / "prefect"),
        "DDPM_SLOTS_FOLDER": str(home / "slots"),  # a run does not wait for those of other tests
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
        "DVC_GLOBAL_CONFIG_DIR": str(home / "dvc-config"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # six processes that poll
        "DO_NOT_TRACK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "COLUMNS": "200",  # Rich would break lines that are looked for
        "OMP_NUM_THREADS": "1",  # networks of a few thousand weights lose more to threads than they gain
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{role}_{name}": value for role in ("AUTHOR", "COMMITTER") for name, value in identity.items()},
        **variables,
    }


@dataclass
class Checkout:
    """A folder of the project, with the environment in which its commands run."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, status: int = 0, timeout: float = 280.0) -> str:
        """Return the output of a command that must end with `status`; kill its process group after the timeout."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            print(f"{' '.join(command)} was ended:\n{process.communicate()[0]}")
            raise
        assert process.returncode == status, f"{' '.join(command)} ended with {process.returncode}:\n{output}"
        return output

    def dvc(self, *arguments: str, status: int = 0) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments, status=status)

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments)

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def pipeline(self, *arguments: str, status: int = 0) -> str:
        return self.run(*command("run", *arguments), status=status)

    def copy(self, folder: Path) -> "Checkout":
        # Without the socket of a service that runs there.
        shutil.copytree(self.folder, folder, symlinks=True, ignore=shutil.ignore_patterns(".service"))
        return Checkout(folder, self.environment)

    def with_environment(self, **variables: str) -> "Checkout":
        return Checkout(self.folder, self.environment | variables)

    def read_yaml(self, name: str) -> dict:
        return YAML(typ="safe").load(self.folder / name)

    def rows(self) -> dict[str, dict[str, str]]:
        """Return the rows of DVC's table of experiments by their names."""
        return {row["Experiment"]: row for row in csv.DictReader(io.StringIO(self.dvc("exp", "show", "--csv")))}

    def checkpoints(self) -> set[Path]:
        return set((self.folder / "build/checkpoints").glob("*/step_*"))

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Return the living processes in or below this folder whose command holds `word`."""
        found = []
        for process in psutil.process_iter():
            try:
                is_here = Path(process.cwd()).is_relative_to(self.folder) and process.status() != psutil.STATUS_ZOMBIE
                if is_here and word in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.Error, OSError):  # it has ended meanwhile
                continue
        return found

    def end_processes(self) -> None:
        """Kill all processes in this folder and its worktrees."""
        for process in self.processes():
            process.kill()


def stages_run(output: str) -> list[str]:
    """Return the stages that DVC says it ran, in the pipeline's order."""
    return [stage for stage in STAGES if f"Running stage '{stage}'" in output]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step_"))


def wait_until(condition, what: str, seconds: float = 60.0):
    """Return the first true value of `condition()`.

    Raises:
        AssertionError: it stayed false.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:.0f} seconds in vain for {what}"
        time.sleep(0.25)
    return value
