"""A Prefect server for one command, such as `flowers run`, where none is configured; it ends with that command.

Prefect would start one itself. That one outlives a command that is killed, and where it cannot start it is tried again
and again, each time with a traceback.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading

import requests
import uvicorn
from prefect.context import refresh_global_settings_context
from prefect.settings import (
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
)

from contract.addresses import server_address
from contract.errors import FlowersError
from flows.service.logs import find_reason

_HOST = "127.0.0.1"
_END_SECONDS = 5.0


def start_temporary_server() -> None:
    """Start a server, wait until it answers, and make it the one that Prefect uses in this process.

    It is out of reach of the terminal's Ctrl-C: a flow hangs in reporting its end to a server that has ended.

    Raises:
        FlowersError: it does not start; the message holds the reason that it gave.
    """
    with socket.create_server((_HOST, 0)) as listener, tempfile.TemporaryFile() as log:
        address = server_address(_HOST, listener.getsockname()[1])
        print(f"Starting a temporary Prefect server at {address}.", flush=True)
        server = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(listener.fileno())],
            stdin=subprocess.PIPE,  # its end tells the server of the end of this process, however that comes
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        atexit.register(end_server, server)
        listener.close()  # the server's alone: with it ends every request to it
        try:
            timeout = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
            requests.get(f"{address}/api/health", timeout=timeout).raise_for_status()
        except requests.RequestException as error:
            end_server(server)
            log.seek(0)
            reason = find_reason(log.read().decode(errors="replace")) or str(error)
            database = PREFECT_API_DATABASE_CONNECTION_URL.value()
            raise FlowersError(
                f"the temporary Prefect server does not start: {reason}. Its database is {database}: mend it, or name "
                "another one in PREFECT_SERVER_DATABASE_CONNECTION_URL or another folder in PREFECT_HOME"
            ) from None
    settings = {"PREFECT_API_URL": f"{address}/api", "PREFECT_UI_URL": ""}  # it has no pages to link to
    os.environ.update(settings)
    refresh_global_settings_context()
    for name in settings:  # the server is gone when people or child processes would use it
        del os.environ[name]


def end_server(server: "subprocess.Popen[bytes]") -> None:
    """End the server, with force if it takes its time."""
    server.terminate()
    try:
        server.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def serve(descriptor: int) -> None:
    """Run the server on a socket that listens, until the process that started it has ended."""
    threading.Thread(target=end_with_starter, daemon=True).start()
    from prefect.server.api.server import create_app  # seconds, in which the starter may end

    listener = socket.socket(fileno=descriptor)
    uvicorn.Server(uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error")).run([listener])


def end_with_starter() -> None:
    """End this process when the other end of its input is closed."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
