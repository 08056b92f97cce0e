"""Before the server starts: the champion, the port, and the environment; tests/seams/test_serving.py starts it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from contract.addresses import require_free_port
from contract.errors import FlowersError
from tracking.registry import Version
from tracking.serve import serve

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # in MLflow's own tables


def test_a_port_in_use_is_a_clear_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FlowersError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: .*in use.*SERVE_PORT"):
            serve("127.0.0.1", port, "tulips", 600)
    for host in ("127.0.0.1", "0.0.0.0"):
        require_free_port(host, port, "")


def test_a_port_of_ipv6_is_judged_as_well():
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = taken.getsockname()[1]
    with taken, pytest.raises(FlowersError, match="in use"):
        require_free_port("::1", port, "")
    require_free_port("::1", port, "")


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 65536), ("192.0.2.1", 5001), ("no.such.host.invalid", 5001)])
def test_an_address_that_is_none_is_a_clear_error(host, port):
    with pytest.raises(FlowersError, match=f"cannot listen on {host} port {port}: "):
        serve(host, port, "tulips", 600)


def test_without_a_champion_it_is_said_how_to_get_one(client, write_params):
    write_params()
    with pytest.raises(FlowersError, match=r"has no champion of flowers-ddpm: `make run` .* `flowers promote VERSION`"):
        serve("127.0.0.1", 0, None, 600)


@pytest.mark.parametrize("uri", ["", "http://server:5000"])
def test_the_server_is_mlflows_with_the_champion_and_its_programs(folder, write_params, monkeypatch, capsys, uri):
    write_params({"register.model_name": "tulips"})
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = []
    monkeypatch.setattr("tracking.serve.Registry.champion", lambda _: Version("4", {}))
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    serve("127.0.0.1", 0, None, 600)
    ((program, command, environment),) = started
    assert program == sys.executable and " ".join(command[1:]) == (
        "-m mlflow models serve --env-manager local --model-uri models:/tulips/4 --timeout 600 "
        "--host 127.0.0.1 --port 0"
    )
    assert "serve: tulips version 4 at http://127.0.0.1:0/invocations" in capsys.readouterr().out
    first, second = environment["PATH"].split(os.pathsep)
    assert (Path(first) / "uvicorn").is_file() and second == "/bin"
    assert environment["MLFLOW_TRACKING_URI"] == (uri or f"sqlite:///{folder}/mlflow.db")


def test_make_serves_at_the_port_that_it_is_given(project):
    command = ["make", "--dry-run", "--no-print-directory", "serve", "SERVE_PORT=6001"]
    plan = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    assert plan.stdout.splitlines()[-1] == "flowers serve --port 6001"
