"""`flowers up`: a Prefect server, an MLflow server and a worker, kept running by supervisord until Ctrl-C.

supervisord.conf names the programs. Here is what it cannot do: check the ports first, wait for the servers, set the
Prefect server up, and end everything with an error that says what is wrong.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from prefect.settings import PREFECT_HOME

from contract.errors import FlowersError
from flows.service import STATE
from flows.service.addresses import Addresses, make_environment
from flows.service.logs import explain_failure, log_path
from flows.service.prefect_server import require_writable
from flows.service.runs import end_runs, hold_pool, release_pool
from flows.service.supervision import Supervisor, make_state, refuse_second_service
from tracking.relocation import find_database, follow_files, require_own_files

START_SECONDS = 300.0
"""Time for the servers to answer; a first start makes their databases."""

_POLL_SECONDS = 1.0
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve_until_interrupted(addresses: Addresses) -> None:
    """Run the service of the current folder until Ctrl-C or SIGTERM.

    Raises:
        FlowersError: it cannot start or continue.
    """
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.default_int_handler)  # even where a script's background ignores SIGINT
    try:
        make_state()
        refuse_second_service()
        addresses.require_free()
        require_writable(PREFECT_HOME.value())
        os.environ.update(make_environment(addresses, os.environ))  # all programs inherit it
        if database := find_database(os.environ["MLFLOW_BACKEND_STORE_URI"]):
            follow_files(database)
            require_own_files(database)
        print("Starting; the first time takes a minute.", flush=True)
        with run_servers(addresses.prefect_api) as supervisor:
            wait_for_servers(supervisor, addresses)
            set_up_server()
            release_pool(addresses.prefect_api)
            supervisor.start("worker")
            print(welcome(addresses), flush=True)
            report_restarts(supervisor)
    except KeyboardInterrupt:
        print("Stopped.")


@contextmanager
def run_servers(api: str) -> Iterator[Supervisor]:
    """Run supervisord with the servers; at the end of the block, end runs, worker and servers in this order."""
    supervisor = Supervisor()
    try:
        yield supervisor
    finally:
        for number in _ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        print("Stopping; runs in progress save their work.", flush=True)
        hold_pool(api)
        end_runs(api)
        supervisor.stop()


def wait_for_servers(supervisor: Supervisor, addresses: Addresses) -> None:
    """Wait until both servers answer; the error about one that does not says why."""
    health = {"prefect": f"{addresses.prefect_api}/health", "mlflow": f"{addresses.mlflow}/health"}
    end = time.monotonic() + START_SECONDS
    for name, address in health.items():
        while not answers(address):
            supervisor.list_starts()  # an error where one was given up
            if time.monotonic() > end:
                raise FlowersError(f"{name} does not answer at {address}: {explain_failure(name)}")
            time.sleep(_POLL_SECONDS)


def answers(address: str) -> bool:
    """Return whether a GET of the address succeeds."""
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False


def set_up_server() -> None:
    """Make pool, automation and deployments, in a process that knows the server's address from its start."""
    command = [sys.executable, "-m", "flows.cli", "set-up"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise FlowersError(f"the set-up of the Prefect server failed:\n{result.stdout}{result.stderr}")


def report_restarts(supervisor: Supervisor) -> None:
    """Print which program has ended and was started again, until interrupted."""
    before = supervisor.list_starts()
    while True:
        time.sleep(_POLL_SECONDS)
        now = supervisor.list_starts()
        for name in now:
            if now[name] != before.get(name, now[name]):
                print(f"{name} has ended and was started again; its log: {log_path(name)}", flush=True)
        before = now


def welcome(addresses: Addresses) -> str:
    """Return where everything is, and how to use it."""
    return f"""
  Prefect  {addresses.prefect}   start and watch runs
  MLflow   {addresses.mlflow}   compare them
  logs     {STATE}/*.log

  For commands of your own, such as `prefect deployment run pipeline/quickstart`:
    export PREFECT_API_URL={addresses.prefect_api} MLFLOW_TRACKING_URI={addresses.mlflow}

Ctrl-C stops everything."""
