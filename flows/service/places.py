"""Names and places that the parts of the service share."""

from pathlib import Path

from contract.errors import FlowersError

POOL = "local"
"""Name of the work pool; prefect.yaml and supervisord.conf name the same."""

STATE = Path(".service")
"""Folder of logs and marker files; supervisord.conf names it, too."""

SOCKET = STATE / "supervisor.sock"


class ServiceError(FlowersError):
    """The service cannot start or continue; the message says why, and what to do."""
