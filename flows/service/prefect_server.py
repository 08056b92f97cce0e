"""The Prefect server that this process is configured for, asked before anything relies on it."""

import os
import tempfile
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.context import get_settings_context
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, PREFECT_HOME, temporary_settings

from contract.addresses import describe_failure
from contract.errors import FlowersError

ANSWER_SECONDS = 10.0
"""Time in which a server that is up answers."""

_NAME = "PREFECT_API_URL"
_FILES = (".env", "prefect.toml", "pyproject.toml")
"""Files of the current folder in which Prefect looks for its settings."""


def require_prefect_server() -> None:
    """Check that the configured Prefect server answers; without one, that a temporary one can keep its files.

    Raises:
        FlowersError: it does not answer as a Prefect server, and the message says where its address comes from; or the
            folder cannot be written.
    """
    address = PREFECT_API_URL.value()
    if not address:
        require_writable(PREFECT_HOME.value())
    elif failure := find_failure():
        place, remedy = find_origin(address)
        raise FlowersError(
            f"the Prefect server at {address} {failure}. The address comes from {place} and looks like "
            "http://127.0.0.1:4200/api; a login stands in PREFECT_API_AUTH_STRING, or before a proxy in "
            "PREFECT_CLIENT_CUSTOM_HEADERS. Start the server (`make up`), or "
            f"{remedy} to use a temporary one"
        )


def require_writable(home: Path) -> None:
    """Check that Prefect can keep its files, among them the server's database.

    Raises:
        FlowersError: the folder cannot be written; the message says what names another.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise FlowersError(
            f"Prefect cannot keep its files in {home}: {error.strerror}. Name a folder that can be written in "
            "PREFECT_HOME, or a home folder in HOME"
        ) from None


def find_failure() -> str | None:
    """Return what the Prefect server of this process does instead of answering, in words; None if it answers."""
    if not PREFECT_API_URL.value():  # the client would start one, and try that again and again
        return None
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True) as client,
        ):
            client.raise_for_api_version_mismatch()
    except Exception as error:  # whatever the client, the network and the server have to say
        return describe_failure(error, "Prefect")
    return None


def find_origin(address: str) -> tuple[str, str]:
    """Return the place of the setting that names the server, and what takes it away; Prefect looks in this order."""
    if os.environ.get(_NAME):
        return f"the environment variable {_NAME}", f"`unset {_NAME}`"
    for path in map(Path, _FILES):
        if path.is_file() and address in path.read_text(errors="replace"):
            return str(path.absolute()), f"remove it there, or `export {_NAME}=`"
    profile = get_settings_context().profile
    return f"the Prefect profile {profile.name} in {profile.source}", f"`prefect config unset {_NAME}`"
