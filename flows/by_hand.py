"""Flows that are started from a terminal, on a temporary Prefect server where none is configured."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from flows.service.proxy import proxy_exceptions

EXIT_INTERRUPTED = 130  # as a shell counts Ctrl-C
EXIT_TERMINATED = 143  # as a shell counts SIGTERM

_GOES_ON = "what is done is kept, and the same command goes on"


def completed(name: str, flow: Callable[[], State[Any]]) -> State[Any]:
    """The final state of a flow run in this process; where it has not completed, this process ends.

    Args:
        name: of the program, for its messages.
        flow: runs the flow and gives its state.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: _terminate(name, number, frame))
    try:
        start_server()
        state = flow()
    except KeyboardInterrupt:
        print(f"{name}: interrupted; {_GOES_ON}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    if not state.is_completed():
        sys.exit(f"{name}: {state.message}")
    return state


def start_server() -> None:
    """Start the temporary server, where no other is configured, out of reach of the terminal's Ctrl-C.

    That signal goes to all that the terminal runs, and a flow whose server has ended hangs in reporting its own end.
    """
    os.environ.update(proxy_exceptions(os.environ))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        get_client(sync_client=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _terminate(name: str, _number: int, _frame: FrameType | None) -> NoReturn:
    """Leave by way of Python's own end, which stops the temporary server; the signal's default would leave it behind.

    Prefect calls this when it has ended the flow.
    """
    print(f"{name}: ended by SIGTERM; {_GOES_ON}", file=sys.stderr, flush=True)
    sys.exit(EXIT_TERMINATED)
