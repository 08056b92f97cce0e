"""Run flows from a terminal, on a temporary Prefect server where none is configured."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from contract.errors import FlowersError
from flows import EXIT_INTERRUPTED
from flows.service.addresses import proxy_exceptions


def run_to_completion(command: str, flow: Callable[[], State[Any]]) -> State[Any]:
    """Run a flow in this process and return its final state. Ctrl-C and SIGTERM end the process.

    Args:
        command: name of the command, for its messages.
        flow: function that runs the flow and returns its state.

    Raises:
        FlowersError: the flow has not completed; the message says how it ended.
    """

    def end(how: str, status: int) -> NoReturn:
        print(f"{command}: {how}; finished work is kept; the same command continues", file=sys.stderr, flush=True)
        sys.exit(status)

    # Prefect calls this when it has ended the flow. The signal's default would leave the temporary server behind.
    signal.signal(signal.SIGTERM, lambda *_: end("ended by SIGTERM", 128 + signal.SIGTERM))
    try:
        start_server()
        state = flow()
    except KeyboardInterrupt:
        end("interrupted", EXIT_INTERRUPTED)
    if not state.is_completed():
        raise FlowersError(str(state.message))
    return state


def start_server() -> None:
    """Start the temporary server, if no other is configured, out of reach of the terminal's Ctrl-C.

    The terminal sends that signal to all of its processes, and a flow hangs in reporting its end to a server that has
    ended.
    """
    os.environ.update(proxy_exceptions(os.environ))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        get_client(sync_client=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
