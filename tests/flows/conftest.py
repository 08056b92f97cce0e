"""A small project under git and DVC, to be worked on in worktrees."""

import subprocess
import sys

import pytest

from tests.seams.checkout import Checkout, clean_environment

FILES = {
    ".dvc/config": "[core]\n    analytics = false\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".gitignore": "/build/\n/data\n/workspaces/\n",
    ".dvcignore": "/workspaces\n",
    "params.yaml": "train:\n  learning_rate: 0.1\n",
    "dvc.yaml": "params:\n  - params.yaml\n",
    "data/images": "the first images",
}


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A project of one commit: parameters, and the pin of raw data that the cache holds."""
    folder = tmp_path_factory.mktemp("project") / "flowers"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    made = Checkout(folder, clean_environment(tmp_path_factory.mktemp("home")))
    made.git("init", "--quiet", "--initial-branch=main")
    made.dvc("add", "--quiet", "data")
    with (folder / "data.dvc").open("a") as pin:
        pin.write("meta:\n  download: {dataset: first}\n")
    made.commit("The project")
    return made


@pytest.fixture
def checkout(project, tmp_path, monkeypatch):
    """A copy of it, in which the test works."""
    for name in ("MLFLOW_TRACKING_URI", "GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    for name in project.environment.keys() - {"PATH"}:
        monkeypatch.setenv(name, project.environment[name])
    made = project.copy(tmp_path / "flowers")
    monkeypatch.chdir(made.folder)
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
