"""Servers that do not answer, as `flowers run` and `flowers sweep` ask them; and the temporary Prefect server."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from contract.errors import FlowersError
from flows import cli
from flows.by_hand import require_servers
from flows.service import prefect_server
from flows.service.prefect_server import find_origin, require_prefect_server
from flows.service.provision import provision
from tests.seams.checkout import wait_until
from tests.seams.servers import free_port
from tracking import connection
from tracking.connection import require_tracking

PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def ports():
    """Ports by what is there: a server that is none of ours, one that never answers, and nothing."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path.split("/")[1]))
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as other, socket.create_server(("127.0.0.1", 0)) as silent:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield {"other": other.server_port, "silent": silent.getsockname()[1], "nothing": free_port()}
        other.shutdown()


def ask_prefect(address):
    with temporary_settings({PREFECT_API_URL: address}):
        require_prefect_server()


def ask_set_up(address):
    with temporary_settings({PREFECT_API_URL: address}), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", address)
        provision()


def ask_mlflow(address):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        require_tracking()


@pytest.mark.parametrize(
    ("ask", "address", "said"),
    [
        (ask_mlflow, "http://127.0.0.1:{nothing}", "does not answer: nothing listens there"),
        (ask_mlflow, "http://localhost.invalid", "does not answer: there is no host of that name"),
        (ask_mlflow, "http://127.0.0.1:{silent}", "does not answer in time"),
        (ask_mlflow, "http://127.0.0.1:{other}/401", "asks for a login or refuses the one that it got"),
        (ask_mlflow, "http://127.0.0.1:{other}/403/", "MLFLOW_SERVER_ALLOWED_HOSTS"),
        (ask_mlflow, "http://127.0.0.1:{other}/404", "answers, but not as"),
        (ask_mlflow, "http://127.0.0.1:{other}/200", "answers, but not as"),
        (ask_mlflow, "https://127.0.0.1:{other}/200", "does not speak TLS"),
        (ask_mlflow, "http://flora:secret@127.0.0.1:{nothing}", "http://…@127.0.0.1:"),
        (ask_mlflow, "http://[::1", "cannot be used"),
        (ask_prefect, "http://flora:secret@127.0.0.1:{nothing}/api", "does not answer: nothing listens there"),
        (ask_prefect, "http://127.0.0.1:{other}/401/", "asks for a login or refuses the one that it got"),
        (ask_prefect, "http://127.0.0.1:{other}/200", "answers, but not as"),
        (ask_prefect, "127.0.0.1:4200/api", "cannot be used"),
        (ask_set_up, "http://127.0.0.1:{nothing}/api", "does not answer: nothing listens there"),
        (ask_set_up, "http://127.0.0.1:{other}/401/", "asks for a login or refuses the one that it got"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_line_that_says_why(monkeypatch, ports, ask, address, said):
    monkeypatch.setenv("NO_PROXY", "*")
    for module in (prefect_server, connection):
        monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    with pytest.raises(FlowersError) as refusal:
        ask(address.format(**ports))
    message = str(refusal.value)
    assert said in message and "unset" in message and "make up" in message and "secret" not in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "text", "place"),
    [
        (None, "", "the environment variable PREFECT_API_URL"),
        ("prefect.toml", '[api]\nurl = "http://box/api"', "{folder}/prefect.toml"),
        (".env", "PREFECT_API_URL=http://box/api", "{folder}/.env"),
        ("home/profiles.toml", '[profiles.old]\nPREFECT_API_URL = "http://box/api"', "the Prefect profile"),
    ],
)
def test_the_place_of_the_setting_is_named(tmp_path, monkeypatch, file, text, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    if file:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(text)
    else:
        monkeypatch.setenv("PREFECT_API_URL", "http://box/api")
    assert find_origin("http://box/api")[0].startswith(place.format(folder=tmp_path))


@pytest.fixture
def small_project(tmp_path, monkeypatch):
    """Works in a folder with the project's parameters, profiles and dvc.yaml."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copytree(PROJECT / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", [("run", "--set", "sample.seed=7"), ("run", "--profile", "flowers102")])
def test_nothing_is_changed_where_a_server_is_missing(small_project, monkeypatch, capsys, ports, words):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{ports['nothing']}")
    with pytest.raises(SystemExit) as ended, temporary_settings({PREFECT_HOME: small_project / "prefect"}):
        cli.main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.startswith("flowers run: MLflow at ") and len(said.splitlines()) == 1
    assert Path("params.yaml").read_bytes() == (PROJECT / "params.yaml").read_bytes()


def test_without_a_server_prefect_needs_a_folder_that_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_TRACKING", "off")
    with temporary_settings({PREFECT_API_URL: None, PREFECT_HOME: tmp_path / "new"}):
        require_servers()
    (tmp_path / "file").touch()
    with (
        temporary_settings({PREFECT_API_URL: None, PREFECT_HOME: tmp_path / "file"}),
        pytest.raises(FlowersError, match=r"cannot keep its files in .*/file: .* PREFECT_HOME"),
    ):
        require_servers()


def test_settings_that_prefect_cannot_read_are_one_line(tmp_path):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "prefect.toml").write_text('[client]\nmax_retries = "many"')
    command = [sys.executable, "-m", "flows.cli", "set-up"]
    environment = {"PYTHONPATH": str(PROJECT), "HOME": "/proc"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert (
        done.stderr.startswith("flowers set-up: Prefect's settings cannot be used") and "valid integer" in done.stderr
    )


def test_a_temporary_server_that_does_not_start_says_why_in_one_line_before_anything_changes(small_project):
    environment = dict(os.environ) | {
        "PYTHONPATH": str(PROJECT),
        "PREFECT_HOME": str(small_project / "prefect"),
        "PREFECT_API_URL": "",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "mysql://flora:secret@box/prefect",
        "DDPM_TRACKING": "off",
    }
    command = [sys.executable, "-m", "flows.cli", "run", "--set", "sample.seed=7"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(r"does not start: ValueError: .*'mysql'", done.stderr) and "secret" not in done.stderr
    assert Path("params.yaml").read_bytes() == (PROJECT / "params.yaml").read_bytes()


def test_a_temporary_server_ends_with_a_starter_that_is_killed(tmp_path):
    script = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "flows.service.temporary_server", "0"], stdin=subprocess.PIPE)
print("ready", flush=True)
time.sleep(60)
"""
    starter = subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert starter.stdout.readline() == "ready\n"
    (server,) = psutil.Process(starter.pid).children()
    starter.kill()
    starter.communicate()
    wait_until(lambda: not psutil.pid_exists(server.pid), "the end of the server", seconds=30)
