"""Real servers on free ports: started, waited for, asked, and ended with their children."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from tests.seams.checkout import Checkout, wait_until

web = requests.Session()
web.trust_env = False  # a proxy has no way to this machine's own ports
# Prefect says 503 while its database is busy; its own client tries again, too.
web.mount("http://", HTTPAdapter(max_retries=Retry(
    total=None, connect=0, read=0, other=0, status=8, status_forcelist=[503], allowed_methods=None, backoff_factor=0.5,
    raise_on_status=False,
)))  # fmt: skip
_GRACE_SECONDS = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """Start a process in its own group; end the group with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)


def wait_until_up(process: subprocess.Popen, log: Path) -> None:
    """Wait until `make up`, or the command behind it, says that everything is up."""

    def is_up() -> bool:
        assert process.poll() is None, f"{' '.join(process.args)} ended:\n{log.read_text()}"
        return "Ctrl-C stops everything." in log.read_text()

    wait_until(is_up, "the service", seconds=280)


def wait_for_server(process: subprocess.Popen, address: str, log: Path) -> None:
    """Wait until the address answers 200."""

    def answers() -> bool:
        assert process.poll() is None, f"{' '.join(process.args)} ended:\n{log.read_text()}"
        with suppress(requests.RequestException):
            return web.get(address, timeout=5).ok
        return False

    wait_until(answers, address, seconds=120)


@contextmanager
def mlflow_server(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Start an MLflow server that keeps everything in the new folder `folder`; yield its address."""
    folder.mkdir()
    port, log = free_port(), folder / "mlflow.log"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "./artifacts",
    ]  # fmt: skip
    # A client's address would make the server a client of itself.
    at_home = {name: value for name, value in environment.items() if name != "MLFLOW_TRACKING_URI"}
    with running(command, folder, at_home, log) as server:
        wait_for_server(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"


@dataclass
class Service:
    """A Prefect server with a worker, and an MLflow server."""

    prefect: str
    mlflow: str
    checkout: Checkout
    """its environment names both servers"""

    def api(self, method: str, path: str, **body):
        """Return the Prefect server's answer."""
        answer = web.request(method, f"{self.prefect}/api{path}", json=body or None, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def tracking(self, method: str, path: str, /, **fields):
        """Return the MLflow server's answer to a query or a body."""
        sent = {"params" if method == "GET" else "json": fields}
        answer = web.request(method, f"{self.mlflow}/api/2.0/mlflow{path}", timeout=30, **sent)
        answer.raise_for_status()
        return answer.json()

    def mlflow_run(self, run_id):
        return self.tracking("GET", "/runs/get", run_id=run_id)["run"]

    def mlflow_run_of(self, run):
        """Return the id of the MLflow run that the page of a flow run links to."""
        return re.search(r"/runs/([0-9a-f]{32})", self.artifacts(run)["mlflow-run"]["data"])[1]

    def tagged_runs(self, tag, value):
        """Return the MLflow runs with this tag."""
        experiments = self.tracking("POST", "/experiments/search", max_results=10).get("experiments", [])
        numbers, chosen = [one["experiment_id"] for one in experiments], f"tags.`{tag}` = '{value}'"
        return self.tracking("POST", "/runs/search", experiment_ids=numbers, filter=chosen).get("runs", [])

    def deployment(self, name, flow="pipeline"):
        return self.api("GET", f"/deployments/name/{flow}/{name}")

    def start(self, deployment, /, name=None, **parameters):
        """Start a run of a deployment of the flow `pipeline`, and return it."""
        body = {"parameters": parameters, "name": name} if name else {"parameters": parameters}
        return self.api("POST", f"/deployments/{self.deployment(deployment)['id']}/create_flow_run", **body)

    def cancel(self, run):
        """Cancel a run as the page's button does."""
        self.api("POST", f"/flow_runs/{run['id']}/set_state", state={"type": "CANCELLING"})

    def ended(self, run, seconds=120.0):
        """Wait for the end of a run, and return it."""
        return wait_until(lambda: self.has_ended(run), f"the end of {run['name']}", seconds)

    def has_ended(self, run):
        """Return the run if it has ended, else None."""
        found = self.api("GET", f"/flow_runs/{run['id']}")
        return found if found["state"]["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} else None

    def flow_runs(self, **chosen):
        return self.api("POST", "/flow_runs/filter", flow_runs=chosen)

    def task_runs(self, run):
        return self.api("POST", "/task_runs/filter", task_runs={"flow_run_id": {"any_": [run["id"]]}})

    def artifacts(self, run):
        """Return the newest artifact of each key on the page of a run."""
        found = self.api("POST", "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
        return {artifact["key"]: artifact for artifact in sorted(found, key=lambda artifact: artifact["created"])}

    def records(self, run):
        """Return the lines of the log on the page of a run."""
        return self.api("POST", "/logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}, sort="TIMESTAMP_ASC")

    def log_of(self, run):
        return "\n".join(record["message"] for record in self.records(run))

    def workspace(self, run):
        """Return the worktree that a run has while it lasts."""
        return Checkout(self.checkout.folder / "workspaces" / run["name"], self.checkout.environment)
