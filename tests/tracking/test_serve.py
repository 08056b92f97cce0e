"""Before the server starts: the champion, the port, and the environment; tests/seams/test_serving.py starts it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from contract.errors import StageError
from tracking import serve as module
from tracking.serve import champion_of, require_free, server_environment

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # in MLflow's own tables


def test_a_port_in_use_is_a_clear_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StageError, match=rf"127\.0\.0\.1:{port} cannot be listened on: .*in use.*SERVE_PORT"):
            require_free("127.0.0.1", port)
    require_free("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 65536), ("192.0.2.1", 5001), ("no.such.host.invalid", 5001)])
def test_an_address_that_is_none_is_a_clear_error(host, port):
    with pytest.raises(StageError, match=f"{host}:{port} cannot be listened on"):
        require_free(host, port)


def test_without_a_champion_it_is_said_how_to_get_one(client):
    with pytest.raises(StageError, match=r"has no champion of tulips: `make run` .* `python -m flows.promote VERSION`"):
        champion_of("tulips")


def test_the_servers_program_is_found_and_so_is_mlflow(folder, monkeypatch):
    monkeypatch.setenv("PATH", "/bin")
    environment = server_environment()
    first, second = environment["PATH"].split(os.pathsep)
    assert (Path(first) / "uvicorn").is_file() and second == "/bin"
    assert environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert server_environment()["MLFLOW_TRACKING_URI"] == "http://server:5000"


def test_the_command_serves_what_it_says(client, write_params, monkeypatch, capsys):
    write_params({"register.model_name": "tulips"})
    started = []
    monkeypatch.setattr(module, "champion_of", lambda _: "4")
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(sys, "argv", ["serve", "--port", "0"])
    module.main()
    (program, command, environment) = started[0]
    assert program == sys.executable and environment["MLFLOW_TRACKING_URI"].startswith("sqlite:///")
    assert " ".join(command[1:]) == (
        "-m mlflow models serve --env-manager local --model-uri models:/tulips/4 --timeout 600 "
        "--host 127.0.0.1 --port 0"
    )
    assert "serve: tulips version 4 at http://127.0.0.1:0/invocations" in capsys.readouterr().out


def test_an_error_is_one_line(client, write_params, monkeypatch):
    write_params()
    monkeypatch.setattr(sys, "argv", ["serve", "--port", "0"])
    with pytest.raises(SystemExit, match=r"^serve: MLflow at .* has no champion of flowers-ddpm"):
        module.main()


def test_make_serves_at_the_port_that_it_is_given(project):
    plan = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "serve", "SERVE_PORT=6001"],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    assert plan.stdout.splitlines()[-1] == "flowers serve --port 6001"
