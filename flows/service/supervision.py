"""supervisord, which keeps the programs of the service running; supervisord.conf names them."""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil
from supervisor.xmlrpc import SupervisorTransport

from contract.errors import FlowersError
from flows.service import SOCKET, STATE
from flows.service.logs import explain_failure, log_path

_CONFIGURATION = "supervisord.conf"


class Supervisor:
    """A running supervisord, and its XML-RPC interface."""

    def __init__(self) -> None:
        """Start supervisord, and with it both servers."""
        command = ["setpriv", "--pdeathsig", "TERM"]  # it ends with this process, however that ends
        command += [sys.executable, "-m", "supervisor.supervisord", "--configuration", _CONFIGURATION]
        if os.getuid() == 0:
            command += ["--user", "root"]  # else it warns at each start
        # What stops it early it only prints.
        with log_path("supervisord").open("ab") as log:
            # A session of its own: the terminal's Ctrl-C ends the programs in their order, not all at once.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def start(self, program: str) -> None:
        """Start a program; its state shows whether that succeeded."""
        call_supervisor("startProcess", program, False)

    def list_starts(self) -> dict[str, int]:
        """Return when each program was last started, in seconds since the epoch; refuse one that was given up."""
        if self._process.poll() is not None:
            raise FlowersError(f"supervisord has ended: {explain_failure('supervisord')}")
        try:
            programs = call_supervisor("getAllProcessInfo")
        except (FileNotFoundError, ConnectionRefusedError):  # it does not listen yet
            return {}
        except Fault as fault:
            raise FlowersError(f"supervisord is shutting down ({fault.faultString})") from None
        for program in programs:
            if program["statename"] == "FATAL":
                raise FlowersError(f"{program['name']} does not start: {explain_failure(program['name'])}")
        return {program["name"]: program["start"] for program in programs}

    def stop(self) -> None:
        """Stop all programs in their order, then supervisord; kill what is left of them."""
        self._process.terminate()
        self._process.wait()  # it kills what has not ended in time
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self._process.pid:  # an orphan of a killed program
                    process.kill()


def call_supervisor(method: str, *arguments: Any) -> Any:
    """Call a method of supervisord's XML-RPC interface and return its answer."""
    # One connection per call: a connection that failed serves no other call.
    transport = SupervisorTransport(serverurl=f"unix://{SOCKET}")
    with ServerProxy("http://localhost", transport=transport) as server:
        return getattr(server.supervisor, method)(*arguments)


def make_state() -> None:
    """Make the folder of the service's logs, and check that it can be written.

    Raises:
        FlowersError: it cannot.
    """
    try:
        STATE.mkdir(exist_ok=True)
        log_path("supervisord").touch()
    except OSError as error:
        raise FlowersError(
            f"the service cannot keep its logs in {STATE.absolute()}: {error.strerror}; work in a checkout that you own"
        ) from None


def refuse_second_service() -> None:
    """Refuse to start beside a running service of this folder, whatever its ports."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionRefusedError):
        probe.connect(str(SOCKET))
        raise FlowersError(
            "the service of this folder is running already: stop it by Ctrl-C in its terminal or by "
            "`supervisorctl shutdown`"
        )
