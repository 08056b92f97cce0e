"""`make up`: a Prefect server, an MLflow server and a worker, kept running by supervisord until Ctrl-C.

supervisord.conf names the programs; here is what it cannot do: look at the ports first, wait for the servers, set the
Prefect server up, and end everything with an error that says what is wrong.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil
import requests
from supervisor.xmlrpc import SupervisorTransport

from flows.service.proxy import proxy_exceptions

ROOT = Path(__file__).resolve().parents[2]
STATE = Path(".service")
SOCKET = STATE / "supervisor.sock"
CONFIGURATION = "supervisord.conf"
SERVERS = ("prefect", "mlflow")
POOL = "local"

HELD = STATE / "pool-is-held"
"""There while the pool is paused by the end of a service, not by people."""

START_SECONDS = 300.0
"""How long the servers may take until they answer; a first start makes their databases."""

RUN_GRACE_SECONDS = 75.0
"""How long the runs in progress may take to end: their stages have 60 seconds to save their work (tasks/stage.py)."""

_POLL_SECONDS = 1.0
_KEPT_LINES = 15
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


class ServiceError(Exception):
    """The service cannot start or go on; the message says why, and what to do."""


@dataclass(frozen=True)
class Addresses:
    """Where the two servers listen."""

    host: str
    prefect_port: int
    mlflow_port: int

    @property
    def prefect(self) -> str:
        """The address of the Prefect server, for this machine's programs."""
        return f"http://{self._reached}:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        """The address of the MLflow server, for this machine's programs."""
        return f"http://{self._reached}:{self.mlflow_port}"

    @property
    def _reached(self) -> str:
        return _EVERY_ADDRESS.get(self.host, self.host)


class Supervisor:
    """What supervisord tells of its programs, and takes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def start(self, program: str) -> None:
        """Start a program; its state says how that went."""
        self._call("startProcess", program, False)

    def started(self) -> dict[str, int]:
        """When each program was last started, in seconds of the epoch; 0 for never.

        Raises:
            ServiceError: supervisord has ended, or has given a program up.
        """
        if self._process.poll() is not None:
            raise ServiceError(f"supervisord has ended:\n{log_end('supervisord')}")
        try:
            programs = self._call("getAllProcessInfo")
        except (FileNotFoundError, ConnectionRefusedError):  # it is about to listen
            return {}
        except Fault as fault:
            raise ServiceError(f"supervisord is shutting down ({fault.faultString})") from None
        for program in programs:
            if program["statename"] == "FATAL":
                raise ServiceError(f"{program['name']} does not start:\n{log_end(program['name'])}")
        return {program["name"]: program["start"] for program in programs}

    @staticmethod
    def _call(method: str, *arguments: Any) -> Any:
        # A connection each: one that has failed serves no other call.
        transport = SupervisorTransport(serverurl=f"unix://{SOCKET}")
        with ServerProxy("http://localhost", transport=transport) as server:
            return getattr(server.supervisor, method)(*arguments)


def main() -> None:
    """`make up`: everything up until Ctrl-C or SIGTERM (status 0) or a failure (status 1)."""
    addresses = _parse_arguments()
    os.chdir(ROOT)
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.default_int_handler)  # even where a script's background ignores SIGINT
    try:
        refuse_second_service()
        refuse_taken_ports(addresses)
        environment = service_environment(addresses, os.environ)
        print("Starting; the first time takes a minute.", flush=True)
        with supervised(environment) as supervisor:
            wait_for_servers(supervisor, addresses)
            set_up(environment)
            release_queue(environment["PREFECT_API_URL"])
            supervisor.start("worker")
            print(welcome(addresses), flush=True)
            report_restarts(supervisor)
    except ServiceError as error:
        sys.exit(f"make up: {error}")
    except KeyboardInterrupt:
        print("Stopped.")


def refuse_second_service() -> None:
    """Look whether a service of this folder is running, whatever its ports.

    Raises:
        ServiceError: there is one.
    """
    with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionRefusedError):
        probe.connect(str(SOCKET))
        raise ServiceError(
            "this folder's service is running already: stop it by Ctrl-C in its terminal or by `supervisorctl shutdown`"
        )


def refuse_taken_ports(addresses: Addresses) -> None:
    """Look at both ports before anything is started.

    Raises:
        ServiceError: one cannot be listened on; the message names its variable.
    """
    for name, port in (("PREFECT_PORT", addresses.prefect_port), ("MLFLOW_PORT", addresses.mlflow_port)):
        family = socket.AF_INET6 if ":" in addresses.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((addresses.host, port))
            except OSError as error:
                raise ServiceError(
                    f"cannot listen on {addresses.host} port {port}: {error.strerror}. If another `make up` or server "
                    f"has it, stop that one, or choose another port: make up {name}={port + 1000}"
                ) from error
    if addresses.prefect_port == addresses.mlflow_port:
        raise ServiceError(f"PREFECT_PORT and MLFLOW_PORT must differ, got {addresses.prefect_port} for both")


def service_environment(addresses: Addresses, caller: Mapping[str, str]) -> dict[str, str]:
    """What the programs find in their environment; both servers read their own settings from it.

    What the caller has set of the databases and of the artifacts' place stays: PostgreSQL, S3.
    """
    defaults = {
        "MLFLOW_BACKEND_STORE_URI": "sqlite:///mlflow.db",
        # The very place that a run by hand uses without a server: each reads what the other has written.
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": "./mlartifacts",
        "MLFLOW_WORKERS": "1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # jobs of MLflow's own, which nothing here uses
        "PATH": os.defpath,
    }
    ours = {
        "PREFECT_API_URL": f"{addresses.prefect}/api",
        "PREFECT_SERVER_API_HOST": addresses.host,
        "PREFECT_SERVER_API_PORT": str(addresses.prefect_port),
        "MLFLOW_HOST": addresses.host,
        "MLFLOW_PORT": str(addresses.mlflow_port),
        "MLFLOW_TRACKING_URI": addresses.mlflow,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        **proxy_exceptions(caller, addresses.host),
    }
    environment = {**defaults, **caller, **ours}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return environment


@contextmanager
def supervised(environment: Mapping[str, str]) -> Iterator[Supervisor]:
    """supervisord with the servers, which ends with the block, all programs before it."""
    STATE.mkdir(exist_ok=True)
    # A session of its own: the terminal's Ctrl-C ends the programs in their order, not all at once.
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "--configuration", CONFIGURATION],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield Supervisor(process)
    finally:
        for number in _ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        print("Stopping; runs in progress save their work.", flush=True)
        hold_queue(environment["PREFECT_API_URL"])
        end_runs(environment["PREFECT_API_URL"])
        process.terminate()
        process.wait()  # it kills what has not ended in its time
        kill_session(process.pid)


def kill_session(leader: int) -> None:
    """Kill what programs that were killed have left behind."""
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader:
                process.kill()


def hold_queue(api: str) -> None:
    """Pause the pool, so that the worker starts no waiting run while those in progress end; they wait on."""
    with suppress(requests.RequestException), _direct_session() as session:
        pool = session.get(f"{api}/work_pools/{POOL}", timeout=5).json()
        if pool.get("is_paused") is False:
            HELD.touch()
            session.patch(f"{api}/work_pools/{POOL}", json={"is_paused": True}, timeout=5)


def release_queue(api: str) -> None:
    """Resume the pool, if it was the end of a service that has paused it.

    Raises:
        ServiceError: the Prefect server does not take it.
    """
    if not HELD.exists():
        return
    try:
        with _direct_session() as session:
            session.patch(f"{api}/work_pools/{POOL}", json={"is_paused": False}, timeout=30).raise_for_status()
    except requests.RequestException as error:
        raise ServiceError(f"the work pool cannot be resumed: {error}") from error
    HELD.unlink()


def end_runs(api: str) -> None:
    """Terminate the flow runs that report to this server, and wait for their end, while it is there to be told.

    A worker that is stopped kills its runs on the spot; and a worker that was killed has left its own behind.
    """
    runs = list(flow_run_processes(api))
    for run in runs:
        with suppress(psutil.NoSuchProcess):
            run.terminate()
    psutil.wait_procs(runs, timeout=RUN_GRACE_SECONDS)


def flow_run_processes(api: str) -> Iterator[psutil.Process]:
    """The processes of this user that execute a deployed flow run for the server at `api`."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it is another user's, or has ended meanwhile
            if "prefect.engine" in process.cmdline() and process.environ().get("PREFECT_API_URL") == api:
                yield process


def wait_for_servers(supervisor: Supervisor, addresses: Addresses) -> None:
    """Until both servers answer.

    Raises:
        ServiceError: one has not answered in time, or has been given up; the end of its log is in the message.
    """
    health = {"prefect": f"{addresses.prefect}/api/health", "mlflow": f"{addresses.mlflow}/health"}
    end = time.monotonic() + START_SECONDS
    for name in SERVERS:
        while not answers(health[name]):
            supervisor.started()
            if time.monotonic() > end:
                raise ServiceError(f"{name} does not answer at {health[name]}:\n{log_end(name)}")
            time.sleep(_POLL_SECONDS)


def answers(address: str) -> bool:
    """Whether a GET of the address gives 200."""
    with _direct_session() as session:
        try:
            return session.get(address, timeout=5).ok
        except requests.RequestException:
            return False


def _direct_session() -> requests.Session:
    """Past any proxy, to this machine's own ports."""
    session = requests.Session()
    session.trust_env = False
    return session


def set_up(environment: Mapping[str, str]) -> None:
    """Pool, limit, automation and deployments, by a process that knows the server's address from its start.

    Raises:
        ServiceError: it failed; its output is in the message.
    """
    command = [sys.executable, "-m", "flows.service.provision"]
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise ServiceError(f"the set-up of the Prefect server failed:\n{result.stdout}{result.stderr}")


def report_restarts(supervisor: Supervisor) -> None:
    """Say which program has ended and was started again, for ever.

    Raises:
        ServiceError: one could not be started again.
    """
    before = supervisor.started()
    while True:
        time.sleep(_POLL_SECONDS)
        now = supervisor.started()
        for name in now:
            if now[name] != before.get(name, now[name]):
                print(f"{name} has ended and was started again; its log: {STATE}/{name}.log", flush=True)
        before = now


def log_end(program: str) -> str:
    """The last lines of a program's log."""
    path = STATE / f"{program}.log"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return "\n".join([*lines[-_KEPT_LINES:], f"(the end of {path})"])


def welcome(addresses: Addresses) -> str:
    """Where everything is, and how to use it."""
    return "\n".join(
        [
            "",
            f"  Prefect  {addresses.prefect}   start and watch runs",
            f"  MLflow   {addresses.mlflow}   compare them",
            f"  logs     {STATE}/*.log",
            "",
            "  For commands of your own, such as `prefect deployment run pipeline/quickstart`:",
            f"    export PREFECT_API_URL={addresses.prefect}/api MLFLOW_TRACKING_URI={addresses.mlflow}",
            "",
            "Ctrl-C stops everything.",
        ]
    )


def _parse_arguments() -> Addresses:
    parser = argparse.ArgumentParser(prog="python -m flows.service.up", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    parser.add_argument("--prefect-port", type=_port, default=4200)
    parser.add_argument("--mlflow-port", type=_port, default=5000)
    arguments = parser.parse_args()
    return Addresses(arguments.host, arguments.prefect_port, arguments.mlflow_port)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
