"""Decisions of `flowers up` before and beside the servers; tests/seams tests the servers themselves."""

import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

from contract.errors import FlowersError
from flows.service import POOL, SOCKET, STATE
from flows.service.addresses import Addresses, make_environment, proxy_exceptions
from flows.service.logs import explain_failure
from flows.service.provision import HEARTBEAT_SECONDS, SILENCE_SECONDS, describe_crash_watch, describe_work_pool
from flows.service.runs import hold_pool, release_pool
from flows.service.supervision import Supervisor, make_state, refuse_second_service
from tests.seams.checkout import wait_until
from tests.seams.servers import free_port

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def state(tmp_path, monkeypatch):
    """The service's own folder in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    STATE.mkdir()
    return STATE


@pytest.mark.parametrize("option", ["--prefect-port", "--mlflow-port"])
def test_a_port_in_use_is_an_error_that_names_the_port_and_its_option(option):
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken, other = server.getsockname()[1], free_port()
        ports = (taken, other) if option == "--prefect-port" else (other, taken)
        with pytest.raises(FlowersError, match=rf"127.0.0.1 port {taken}: Address already in use.*{option}"):
            Addresses("127.0.0.1", *ports).require_free()


def test_addresses_that_cannot_work_are_errors():
    first, second = free_port(), free_port()
    Addresses("127.0.0.1", first, second).require_free()
    with pytest.raises(FlowersError, match=r"cannot listen on 192\.0\.2\.1 port"):
        Addresses("192.0.2.1", first, second).require_free()
    with pytest.raises(FlowersError, match=r"host .* is empty"):
        Addresses("", first, second).require_free()
    with pytest.raises(FlowersError, match="different ports"):
        Addresses("127.0.0.1", first, first).require_free()


def test_a_second_service_of_the_folder_is_refused_whatever_its_ports(state):
    refuse_second_service()
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(str(SOCKET))
        running.listen()
        with pytest.raises(FlowersError, match="running already"):
            refuse_second_service()
    refuse_second_service()  # a killed one leaves its socket behind


def test_local_programs_reach_a_server_that_listens_on_every_address():
    assert Addresses("0.0.0.0", 4200, 5000).prefect == "http://127.0.0.1:4200"
    assert Addresses("10.0.0.7", 4200, 5000).mlflow == "http://10.0.0.7:5000"
    assert Addresses("::", 4200, 5000).mlflow == Addresses("::1", 4200, 5000).mlflow == "http://[::1]:5000"


def test_programs_find_the_servers_and_commands_of_this_environment():
    elsewhere = dict.fromkeys(("MLFLOW_TRACKING_URI", "PREFECT_API_URL"), "http://elsewhere")
    caller = elsewhere | {"PATH": "/bin"}
    environment = make_environment(Addresses("10.0.0.7", 4200, 5000), caller)
    assert environment["PREFECT_API_URL"] == "http://10.0.0.7:4200/api"
    assert environment["MLFLOW_TRACKING_URI"] == "http://10.0.0.7:5000"
    assert environment["no_proxy"] == environment["NO_PROXY"] == "127.0.0.1,localhost,::1,10.0.0.7"
    first, *_, last = environment["PATH"].split(os.pathsep)
    assert (Path(first) / "python").exists() and last == "/bin"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "sqlite:///mlflow.db"
    store = {"MLFLOW_BACKEND_STORE_URI": "postgresql://db/mlflow"}
    assert make_environment(Addresses("10.0.0.7", 4200, 5000), store).items() >= store.items()


@pytest.mark.parametrize(
    "environment", [{"NO_PROXY": "intranet, 127.0.0.1"}, {"NO_PROXY": "x", "no_proxy": "intranet"}]
)
def test_exceptions_from_a_proxy_that_are_set_stay_and_come_first(environment):
    exceptions = "intranet,127.0.0.1,localhost,::1,box"
    assert proxy_exceptions(environment, "box") == {"no_proxy": exceptions, "NO_PROXY": exceptions}


def test_runs_send_heartbeats_as_often_as_the_automation_expects():
    assert SILENCE_SECONDS > 3 * HEARTBEAT_SECONDS, "two beats may be lost before a run counts as dead"
    assert describe_crash_watch().trigger.within.total_seconds() == SILENCE_SECONDS
    variables = describe_work_pool().base_job_template["variables"]["properties"]
    assert variables["env"]["default"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() == HEARTBEAT_SECONDS  # prefect.toml


def test_settings_name_the_pool_and_the_folder_of_the_service():
    assert f"--pool {POOL} " in (PROJECT / "supervisord.conf").read_text()
    assert f"name: {POOL}\n" in (PROJECT / "prefect.yaml").read_text()
    assert f"file = /proc/self/cwd/{SOCKET}\n" in (PROJECT / "supervisord.conf").read_text()


@pytest.fixture
def pool(state):
    """The work pool of a server: its state, and the server's address."""
    answer = {"is_paused": False}

    class Pool(BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == f"/api/work_pools/{POOL}"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def do_PATCH(self):
            answer.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.do_GET()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pool) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield answer, f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def test_a_service_that_ends_leaves_waiting_runs_to_the_next(pool):
    state, api = pool
    for is_paused, change in ((False, release_pool), (True, hold_pool), (False, release_pool)):
        change(api)
        assert state == {"is_paused": is_paused}
    state["is_paused"] = True  # by a user
    hold_pool(api)
    release_pool(api)
    assert state == {"is_paused": True}


def test_a_missing_server_is_an_error_at_the_start_not_at_the_end(pool):
    hold_pool(pool[1])
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    hold_pool(nowhere)
    with pytest.raises(FlowersError, match="cannot be resumed"):
        release_pool(nowhere)


def test_supervisord_ends_with_a_service_that_is_killed(checkout, start_python):
    (checkout.folder / "supervisord.conf").write_text("[supervisord]\nnodaemon = true\n")
    service = start_python("""
import time
from flows.service.supervision import Supervisor, make_state
make_state()
running = Supervisor()
print("ready", flush=True)
time.sleep(60)
""")
    (supervisord,) = psutil.Process(service.pid).children()
    service.kill()
    wait_until(lambda: not supervisord.is_running(), "the end of supervisord", seconds=20)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("Traceback:\n  File x\nValueError: first\n\nTraceback:\n  File y\nsqlite3.OperationalError: locked\nbye\n\n",
         "sqlite3.OperationalError: locked"),
        ("started\nError: no such option\nFor help, use -h\n", "Error: no such option"),
        ("started\nKilled\n\n", "Killed"),
        (None, "it has said nothing"),
    ],
)  # fmt: skip
def test_the_reason_in_a_log_is_shown_with_its_path(state, log, said):
    if log is not None:
        (state / "mlflow.log").write_text(log)
    assert explain_failure("mlflow") == f"{said} (its log: .service/mlflow.log)"


def test_the_folder_of_logs_must_be_writable(state):
    make_state()
    (state / "supervisord.log").unlink()
    (state / "supervisord.log").mkdir()
    state.rename("elsewhere")
    Path(".service").touch()
    with pytest.raises(FlowersError, match=r"cannot keep its logs in .*/\.service: "):
        make_state()


def test_supervisord_runs_in_a_folder_of_any_path_and_says_why_it_ends(tmp_path, monkeypatch):
    folder = tmp_path / ("100% of %(here)s and ü" * 4)
    folder.mkdir()
    monkeypatch.chdir(folder)
    make_state()
    configuration = (PROJECT / "supervisord.conf").read_text()
    Path("supervisord.conf").write_text(configuration.partition("; Programs are stopped")[0])
    supervisor = Supervisor()
    wait_until(lambda: supervisor.list_starts() == {} and SOCKET.exists(), "supervisord", seconds=20)
    with pytest.raises(FlowersError, match="running already"):
        refuse_second_service()
    supervisor.stop()
    Path("supervisord.conf").write_text("[supervisord]\nloglevel = loud\n")
    failed = Supervisor()
    with pytest.raises(FlowersError, match=r"^supervisord has ended: Error: bad logging level") as end:
        wait_until(failed.list_starts, "the end of supervisord", seconds=20)
    assert len(str(end.value).splitlines()) == 1
