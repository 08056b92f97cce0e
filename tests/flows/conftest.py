"""A small project under git and DVC, to be worked on in worktrees."""

import subprocess
import sys

import pytest

from tests.seams.checkout import Checkout, clean_environment


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A project of one commit: parameters, and the pin of raw data that the cache holds."""
    folder = tmp_path / "flowers"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (folder / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (folder / ".gitignore").write_text("/build/\n/data\n/workspaces/\n")
    (folder / ".dvcignore").write_text("/workspaces\n")
    (folder / "params.yaml").write_text("train:\n  learning_rate: 0.1\n")
    (folder / "dvc.yaml").write_text("params:\n  - params.yaml\n")
    (folder / "data").mkdir()
    (folder / "data/images").write_text("the first images")
    environment = clean_environment(tmp_path / "home")
    for name in ("MLFLOW_TRACKING_URI", "GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    for name in environment.keys() - {"PATH"}:
        monkeypatch.setenv(name, environment[name])
    monkeypatch.chdir(folder)
    made = Checkout(folder, environment)
    made.dvc("add", "--quiet", "data")
    pin = folder / "data.dvc"
    pin.write_text(pin.read_text() + "meta:\n  download: {dataset: first}\n")
    made.git("init", "--quiet", "--initial-branch=main")
    made.commit("The project")
    return made


@pytest.fixture
def start_python(checkout):
    """Starts a script in the checkout, waits for its first line, and gives the process."""
    started = []

    def start(script):
        process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=checkout.folder, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
