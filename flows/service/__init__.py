"""The service of `flowers up`: servers, worker, and the set-up of the Prefect server."""

from pathlib import Path

POOL = "local"
"""Name of the work pool; prefect.yaml and supervisord.conf name the same."""

STATE = Path(".service")
"""Folder of logs and marker files; supervisord.conf names it, too."""

SOCKET = STATE / "supervisor.sock"
