"""Bring a file of known md5 over HTTP, through breaks of the line and of the program.

What has arrived lies in a folder outside of the dataset, under the file's name and md5, and stays there when a transfer
fails or is killed: the next one asks for the rest (RFC 9110, section 14). An ETag, where the server gives one, guards
against joining halves of two versions; the md5 of the whole is the last word. Proxies are taken from the environment
(HTTPS_PROXY, HTTP_PROXY, NO_PROXY), which requests reads.
"""

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError as TransportError
from urllib3.exceptions import InvalidHeader, MaxRetryError
from urllib3.util import Retry

from ddpm.files import atomic_path, file_digest
from stages.datasets.source import DatasetError
from stages.runtime.progress import progress_bar

CONNECT_SECONDS = 10.0
"""How long to wait for a connection; a name that cannot be resolved fails sooner."""
READ_SECONDS = 30.0
"""How long a server may be silent."""
RETRIES = 5
"""In a row, without progress."""
CONNECT_RETRIES = 2
"""In a row, where not even a connection comes about: without a network the end comes in seconds."""
BACKOFF_SECONDS = 2.0
"""The second retry waits about so long, each later one twice as long as that before; the first does not wait."""
MAX_WAIT_SECONDS = 60.0
"""At most, also where a server asks for more by Retry-After."""
PROGRESS_BYTES = 2**20
"""So many new bytes are progress, after which the retries are counted anew."""
TRANSFERS = 2
"""A file that arrives with the wrong md5 is fetched once more from the start."""

_CHUNK_BYTES = 2**18
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class TransferError(DatasetError):
    """An address cannot be had."""


class WrongDigestError(DatasetError):
    """What an address gives is not the expected file."""

    def __init__(self, address: str, found: str) -> None:
        super().__init__(f"{address} has md5 {found}")
        self.found = found


class _BrokenError(Exception):
    """A transfer broke off in a way that another try may mend."""


@dataclass(frozen=True)
class PartialFile:
    """The bytes that have arrived, and beside them which version of the file, of which address, they belong to."""

    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def is_whole(self, md5: str) -> bool:
        """Whether these are the bytes of that digest."""
        return self.path.is_file() and file_digest(self.path) == md5

    def headers(self, address: str) -> dict[str, str]:
        """Of the request for the rest: all of it, if the server has another version by now."""
        if self.size == 0:
            return {}
        asked = {"Range": f"bytes={self.size}-"}
        version = json.loads(self._version.read_text()) if self._version.is_file() else {}
        if version.get("address") == address and version.get("etag"):
            asked["If-Range"] = version["etag"]
        return asked

    def begin(self, address: str, etag: str | None) -> None:
        """Start from nothing, with the version that now comes."""
        self.discard()
        # If-Range takes strong tags alone.
        strong = etag if etag and not etag.startswith("W/") else None
        with atomic_path(self._version) as temporary:
            temporary.write_text(json.dumps({"address": address, "etag": strong}))

    def discard(self) -> None:
        """Throw away what has arrived."""
        self.path.unlink(missing_ok=True)
        self._version.unlink(missing_ok=True)

    @property
    def _version(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")


def fetch_verified(address: str, md5: str, downloads: Path) -> Path:
    """Bring the file at `address` into the folder `downloads`, where an earlier try may have left a part of it.

    Returns:
        The file, which has this md5; its name there is not that of the address.

    Raises:
        TransferError: it cannot be had; what has arrived of it stays.
        WrongDigestError: it has another md5, also when fetched again from the start; nothing of it stays.
    """
    partial = PartialFile(downloads / f"{address.rsplit('/', 1)[-1]}.{md5}.part")
    found = ""
    for _ in range(TRANSFERS):
        if not partial.is_whole(md5):
            transfer(address, partial)
        found = file_digest(partial.path)
        if found == md5:
            return partial.path
        partial.discard()
        print(f"download: warning: {address} arrived with md5 {found} instead of {md5}", flush=True)
    raise WrongDigestError(address, found)


def transfer(address: str, partial: PartialFile) -> None:
    """Bring what is missing of the file at `address`, trying again where that may help.

    Raises:
        TransferError: it cannot be had.
    """
    retries, reached = _all_retries(), partial.size
    with requests.Session() as session:
        while (error := _attempt(session, address, partial)) is not None:
            if partial.size - reached >= PROGRESS_BYTES:
                retries, reached = _all_retries(), partial.size
            retries = _one_less(retries, address, error)
            wait = _wait(retries, error)
            reached_mb = partial.size / 1e6
            print(f"download: warning: {_cause(error)}; going on from {reached_mb:.1f} MB in {wait:.0f} s", flush=True)
            time.sleep(wait)


def _attempt(session: requests.Session, address: str, partial: PartialFile) -> Exception | None:
    """Ask once for what is missing; give the error if that broke off and another try may help, None if all came."""
    try:
        _receive(session, address, partial)
    except (_BrokenError, requests.RequestException, TransportError) as error:
        if not _may_pass(error):
            raise TransferError(f"{address} is refused: {_cause(error)}") from error
        return error
    return None


def _receive(session: requests.Session, address: str, partial: PartialFile) -> None:
    # Not compressed on the way: the md5, the size and the ranges are those of the file.
    headers = {"Accept-Encoding": "identity"} | partial.headers(address)
    with session.get(address, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            partial.discard()
            raise _BrokenError("the file ends before what has arrived of it does")
        response.raise_for_status()
        total = _begin(response, address, partial)
        name = address.rsplit("/", 1)[-1]
        with partial.path.open("ab") as file, progress_bar(name, total, "B", initial=partial.size) as bar:
            # read1 gives what is there: read would lose what came before a break.
            while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and partial.size != total:
        raise _BrokenError(f"{partial.size} of {total} bytes have arrived")


def _begin(response: requests.Response, address: str, partial: PartialFile) -> int | None:
    """Go on where the body goes on, or start anew where the server sends all of it; give the size of the whole file."""
    if response.status_code == requests.codes.partial_content:
        content_range = response.headers.get("Content-Range", "")
        match = _RANGE.fullmatch(content_range)
        if match is None or int(match[1]) != partial.size:
            asked = partial.size
            partial.discard()
            raise _BrokenError(f"asked for the bytes from {asked}, got those of Content-Range {content_range!r}")
        return None if match[2] == "*" else int(match[2])
    partial.begin(address, response.headers.get("ETag"))
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _all_retries() -> Retry:
    return Retry(
        total=RETRIES,
        connect=CONNECT_RETRIES,
        backoff_factor=BACKOFF_SECONDS / 2,  # which urllib3 doubles before the second retry
        backoff_jitter=BACKOFF_SECONDS / 2,
        backoff_max=MAX_WAIT_SECONDS,
    )


def _one_less(retries: Retry, address: str, error: Exception) -> Retry:
    try:
        return retries.increment("GET", address, error=_cause(error))
    except MaxRetryError:
        raise TransferError(f"{address} cannot be downloaded: {_cause(error)}") from error


def _wait(retries: Retry, error: Exception) -> float:
    """Seconds that the server asks for, within bounds, or twice as many as before."""
    asked = None
    if isinstance(error, requests.HTTPError):
        with suppress(InvalidHeader):
            asked = retries.get_retry_after(error.response.raw)
    return min(asked, MAX_WAIT_SECONDS) if asked else retries.get_backoff_time()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in _PASSING_STATUS
    if isinstance(error, requests.exceptions.SSLError):  # a certificate that is not trusted stays so
        return False
    return isinstance(error, _BrokenError | requests.ConnectionError | requests.Timeout | TransportError)


def _cause(error: Exception) -> Exception:
    """What lies beneath the wrappings of requests."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return reason if isinstance(reason, Exception) else error
