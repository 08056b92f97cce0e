"""Run flows from a terminal, on a temporary Prefect server where none is configured."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL

from contract.errors import FlowersError, hide_password
from flows.service.addresses import proxy_exceptions
from flows.service.prefect_server import find_failure, require_prefect_server
from flows.service.temporary_server import start_temporary_server
from tracking.connection import require_tracking


def require_servers() -> None:
    """Check that what a run reports to can be used, before anything changes: the Prefect server, and MLflow.

    Raises:
        FlowersError: a server does not answer, or a database or Prefect's folder cannot be used.
    """
    os.environ.update(proxy_exceptions(os.environ))
    require_prefect_server()
    require_tracking()


def run_to_completion(command: str, flow: Callable[[], State[Any]]) -> State[Any]:
    """Run a flow in this process and return its final state. Ctrl-C and SIGTERM end the process.

    Args:
        command: name of the command, for its messages.
        flow: function that runs the flow and returns its state.

    Raises:
        FlowersError: the flow has not completed; the message says how it ended.
    """

    def end(how: str, status: int) -> NoReturn:
        said = f"{command}: {how}; finished work is kept; the same command continues"
        print(hide_password(said), file=sys.stderr, flush=True)
        if find_failure():
            os._exit(status)  # Prefect would try for minutes to send its last events
        sys.exit(status)

    # Prefect calls this when it has ended the flow. The signal's default would leave the temporary server behind.
    signal.signal(signal.SIGTERM, lambda *_: end("ended by SIGTERM", 128 + signal.SIGTERM))
    problem = None
    try:
        if not PREFECT_API_URL.value():
            start_temporary_server()
        state = flow()
    except KeyboardInterrupt:
        end("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        problem = error
    if problem:  # asked here, not above, where the flow's error would count as the reason of the server's
        if failure := find_failure():
            end(f"the end cannot be reported, since the Prefect server at {PREFECT_API_URL.value()} {failure}", 1)
        raise problem
    if not state.is_completed():
        raise FlowersError(str(state.message))
    return state
