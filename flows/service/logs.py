"""Logs of servers: where they lie, and what they say about a failure."""

import re
from pathlib import Path

from flows.service import STATE


def log_path(program: str) -> Path:
    """Return the path of the log of a program of the service; supervisord.conf names the same ones."""
    return STATE / f"{program}.log"


def explain_failure(program: str) -> str:
    """Return why a program of the service failed, as its log says, and the path of the log."""
    path = log_path(program)
    log = path.read_text(errors="replace") if path.is_file() else ""
    return f"{find_reason(log) or 'it has said nothing'} (its log: {path})"


def find_reason(log: str) -> str | None:
    """Return the last line of a log that names an error, as a traceback's end does; if none does, the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reasons = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return next(iter(reasons[-1:] or lines[-1:]), None)
