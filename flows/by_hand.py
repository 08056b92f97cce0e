"""Run flows from a terminal, on a temporary Prefect server where none is configured."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from contract.errors import FlowersError
from flows.service.proxy import proxy_exceptions

EXIT_INTERRUPTED = 130  # a shell's status for Ctrl-C
EXIT_TERMINATED = 143  # a shell's status for SIGTERM

_CONTINUE = "finished work is kept; the same command continues"


class FlowFailedError(FlowersError):
    """A flow run has not completed; the message says how it ended."""


def run_to_completion(command: str, flow: Callable[[], State[Any]]) -> State[Any]:
    """Run a flow in this process and return its final state. Ctrl-C and SIGTERM end the process.

    Args:
        command: name of the command, for its messages.
        flow: function that runs the flow and returns its state.

    Raises:
        FlowFailedError: the flow has not completed.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: _terminate(command, number, frame))
    try:
        start_server()
        state = flow()
    except KeyboardInterrupt:
        print(f"{command}: interrupted; {_CONTINUE}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    if not state.is_completed():
        raise FlowFailedError(str(state.message))
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


def _terminate(command: str, _number: int, _frame: FrameType | None) -> NoReturn:
    """Leave through Python's own exit, which stops the temporary server; the signal's default would leave it behind.

    Prefect calls this after it has ended the flow.
    """
    print(f"{command}: ended by SIGTERM; {_CONTINUE}", file=sys.stderr, flush=True)
    sys.exit(EXIT_TERMINATED)
