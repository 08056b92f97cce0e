"""What `make up` decides before and beside the servers; the servers themselves are tested in tests/seams."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from xmlrpc.client import Fault

import pytest

from flows.service import up as service
from flows.service.up import Addresses, ServiceError, log_end, refuse_taken_ports, service_environment
from tests.seams.servers import free_port

ADDRESSES = Addresses("127.0.0.1", 4200, 5000)


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("name", ["PREFECT_PORT", "MLFLOW_PORT"])
def test_a_port_in_use_is_an_error_that_names_the_port_and_its_variable(name, taken_port):
    other = free_port()
    ports = (taken_port, other) if name == "PREFECT_PORT" else (other, taken_port)
    with pytest.raises(ServiceError, match=rf"127.0.0.1 port {taken_port}: Address already in use.*{name}="):
        refuse_taken_ports(Addresses("127.0.0.1", *ports))


def test_an_address_that_is_not_this_machines_is_an_error():
    with pytest.raises(ServiceError, match=r"cannot listen on 192\.0\.2\.1 port"):
        refuse_taken_ports(Addresses("192.0.2.1", free_port(), free_port()))


def test_one_port_for_both_is_an_error():
    port = free_port()
    with pytest.raises(ServiceError, match="must differ"):
        refuse_taken_ports(Addresses("127.0.0.1", port, port))


def test_a_second_service_of_the_folder_is_refused_whatever_its_ports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    service.refuse_second_service()
    service.STATE.mkdir()
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(str(service.SOCKET))
        running.listen()
        with pytest.raises(ServiceError, match="running already: stop it by Ctrl-C"):
            service.refuse_second_service()
    service.refuse_second_service()  # a killed one leaves its socket behind


def test_free_ports_pass_and_stay_free():
    ports = free_port(), free_port()
    refuse_taken_ports(Addresses("127.0.0.1", *ports))
    for port in ports:
        with socket.create_server(("127.0.0.1", port)) as server:
            assert server.getsockname()[1] == port


@pytest.mark.parametrize("text", ["0", "65536", "five", "-1"])
def test_a_port_is_a_number_from_1_to_65535(text, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["service", "--prefect-port", text])
    with pytest.raises(SystemExit):
        service.main()
    assert f"from 1 to 65535, got '{text}'" in capsys.readouterr().err


def test_programs_of_this_machine_reach_a_server_that_listens_on_every_address():
    assert Addresses("0.0.0.0", 4200, 5000).prefect == "http://127.0.0.1:4200"
    assert Addresses("10.0.0.7", 4200, 5000).mlflow == "http://10.0.0.7:5000"


def test_the_programs_find_the_servers_and_this_environments_commands_whatever_the_caller_has_set():
    caller = {"MLFLOW_TRACKING_URI": "http://elsewhere", "PREFECT_API_URL": "http://elsewhere/api", "PATH": "/bin"}
    environment = service_environment(ADDRESSES, caller)
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert environment["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    first, *_, last = environment["PATH"].split(":")
    assert (service.Path(first) / "python").exists()
    assert last == "/bin"


def test_no_proxy_stands_before_the_servers():
    environment = service_environment(Addresses("10.0.0.7", 4200, 5000), {"NO_PROXY": "intranet"})
    assert environment["no_proxy"] == environment["NO_PROXY"] == "intranet,127.0.0.1,localhost,::1,10.0.0.7"


def test_a_supervisor_on_its_way_out_is_no_surprise(monkeypatch):
    def refuse(*_):
        raise Fault(6, "SHUTDOWN_STATE")

    monkeypatch.setattr(service.Supervisor, "_call", staticmethod(refuse))
    with pytest.raises(ServiceError, match="shutting down"):
        service.Supervisor(SimpleNamespace(poll=lambda: None)).started()


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """The work pool of a server: its state, and the server's address."""
    monkeypatch.chdir(tmp_path)
    service.STATE.mkdir()
    state = {"is_paused": False}

    class Pool(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer()

        def do_PATCH(self):
            state.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer()

        def answer(self):
            assert self.path == "/api/work_pools/local"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(state).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pool) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state, f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def test_runs_that_wait_are_not_started_by_a_service_that_ends_and_are_by_the_next(pool):
    state, api = pool
    service.release_queue(api)
    assert state == {"is_paused": False}
    service.hold_queue(api)
    assert state == {"is_paused": True}
    service.release_queue(api)
    assert state == {"is_paused": False}


def test_a_pool_that_people_have_paused_stays_so(pool):
    state, api = pool
    state["is_paused"] = True
    service.hold_queue(api)
    service.release_queue(api)
    assert state == {"is_paused": True}


def test_a_pool_that_cannot_be_resumed_is_an_error_and_one_that_cannot_be_held_is_none(pool):
    _, api = pool
    service.hold_queue(api)
    nowhere = f"http://127.0.0.1:{free_port()}/api"
    service.hold_queue(nowhere)
    with pytest.raises(ServiceError, match="the work pool cannot be resumed"):
        service.release_queue(nowhere)


def test_databases_are_the_projects_own_unless_the_caller_names_others():
    assert service_environment(ADDRESSES, {})["MLFLOW_BACKEND_STORE_URI"] == "sqlite:///mlflow.db"
    caller = {"MLFLOW_BACKEND_STORE_URI": "postgresql://db/mlflow"}
    assert service_environment(ADDRESSES, caller)["MLFLOW_BACKEND_STORE_URI"] == "postgresql://db/mlflow"


def test_the_end_of_a_log_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    service.STATE.mkdir()
    (service.STATE / "mlflow.log").write_text("".join(f"line {number}\n" for number in range(40)))
    assert log_end("mlflow").splitlines() == [
        *(f"line {number}" for number in range(25, 40)),
        "(the end of .service/mlflow.log)",
    ]
    assert log_end("prefect") == "(the end of .service/prefect.log)"
