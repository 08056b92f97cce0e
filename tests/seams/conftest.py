"""A small experiment in a copy of the project, run by the real DVC, Prefect and MLflow."""

import fcntl
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from contract.assignments import parse_overrides
from contract.params import activate
from tests.seams.checkout import BEHIND_A_DEAD_PROXY, RUNAWAY, Checkout, clean_environment, command
from tests.seams.servers import Service, free_port, running, wait_until_up
from tools.tiny_experiment import TINY

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A fresh checkout with nothing made yet, whose quickstart profile is the small experiment."""
    home = tmp_path_factory.mktemp("home")
    folder = tmp_path_factory.mktemp("project") / "flowers"
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={PROJECT}", "ls-files", "-coz", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
    # What the project has made of its own experiment is not this one's.
    (folder / "dvc.lock").unlink(missing_ok=True)
    (folder / "data.dvc").unlink(missing_ok=True)
    overrides = parse_overrides([f"{name}={value}" for name, value in TINY.items()])
    activate("quickstart", overrides, folder / "params.yaml")
    shutil.copy(folder / "params.yaml", folder / "profiles" / "quickstart.yaml")
    checkout = Checkout(folder, clean_environment(home))
    checkout.git("init", "--quiet", "--initial-branch=main")
    checkout.commit("The project")
    return checkout


@dataclass
class Reproduced:
    """Small experiment, made by `dvc repro` in a fresh checkout and committed."""

    checkout: Checkout
    output: str
    opened: set[tuple[str, str]]
    """each stage with the files in build/ that it opened, relative to the checkout"""


@pytest.fixture(scope="session")
def reproduced(project, tmp_path_factory, worker_id):
    """Make the small experiment once for all workers of pytest; tests that change something take `checkout`."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "reproduced"
    shared.mkdir(exist_ok=True)
    told, opened = shared / "output.txt", shared / "opened.txt"
    checkout = Checkout(shared / "flowers", project.environment)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            project.copy(checkout.folder)
            watching = {"PYTHONPATH": str(PROJECT / "tests/seams/watching"), "OPENED_FILES": str(opened)}
            output = checkout.with_environment(**watching).dvc("repro")
            checkout.commit("The experiment")
            told.write_text(output)
    lines = (line.replace(f"{checkout.folder}/", "").partition(" ") for line in opened.read_text().splitlines())
    return Reproduced(checkout, told.read_text(), {(stage, path) for stage, _, path in lines if path[:6] == "build/"})


@pytest.fixture
def checkout(reproduced, tmp_path):
    """Yield a copy of the reproduced checkout; end its processes after the test."""
    made = reproduced.checkout.copy(tmp_path / "flowers")
    yield made
    made.end_processes()


@pytest.fixture(scope="session")
def service(project, tmp_path_factory):
    """Start the service as `make up` does, on free ports, with one GPU slot, where a proxy is set but dead."""
    folder = tmp_path_factory.mktemp("service")
    prefect_port, mlflow_port = free_port(), free_port()
    prefect, mlflow = f"http://127.0.0.1:{prefect_port}", f"http://127.0.0.1:{mlflow_port}"
    checkout = project.copy(folder / "flowers").with_environment(
        PREFECT_HOME=str(folder / "prefect"),
        PREFECT_API_URL=f"{prefect}/api",
        MLFLOW_TRACKING_URI=mlflow,
        DDPM_GPU_SLOTS="1",
    )
    log = folder / "up.log"
    words = command("up", "--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port))
    with running(words, checkout.folder, checkout.environment | BEHIND_A_DEAD_PROXY, log) as process:
        wait_until_up(process, log)
        yield Service(prefect, mlflow, checkout)
        checkout.end_processes()


@pytest.fixture(scope="session")
def deployed_run(service):
    """Run the small experiment by its deployment, and return the flow run."""
    run = service.ended(service.start("quickstart", params={"train": {"learning_rate": 0.001}}), seconds=280)
    assert run["state"]["type"] == "COMPLETED", service.log_of(run)
    return run


@pytest.fixture(scope="session")
def owls(service):
    """Run a sweep of two by its deployment, one of which fails; return its flow run, and its trials by name."""
    before = (service.checkout.folder / "params.yaml").read_text()
    output = service.checkout.run(
        "prefect", "deployment", "run", "sweep/quickstart", "--watch",
        "--param", f"overrides={json.dumps([{'train.learning_rate': 0.0015}, RUNAWAY])}",
        "--param", 'params={"register": {"enabled": false}}',
        "--param", 'name="owls"',
        timeout=550,
    )  # fmt: skip
    print(output)
    (sweep,) = service.flow_runs(deployment_id={"any_": [service.deployment("quickstart", "sweep")["id"]]})
    trials = {run["name"]: run for run in service.flow_runs(tags={"all_": ["sweep:owls"]})}
    assert (service.checkout.folder / "params.yaml").read_text() == before
    return sweep, trials


@pytest.fixture(scope="session")
def applied(service, deployed_run, tmp_path_factory):
    """Return a copy of the checkout with the experiment of that run applied."""
    made = service.checkout.copy(tmp_path_factory.mktemp("applied") / "flowers")
    made.dvc("exp", "apply", deployed_run["name"])
    return made
