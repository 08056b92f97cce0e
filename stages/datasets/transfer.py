"""Download a file of known md5 over HTTP, resuming after broken connections and killed programs.

The bytes received so far stay in a folder outside of the dataset, named after the file and its md5, until the dataset
stands; the next download requests only the rest (RFC 9110, section 14). The md5 of the whole file decides whether it is
right, so a rest that belongs to another version costs one more download and no wrong byte. Proxies are taken from the
environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) by requests.
"""

import re
import time
from contextlib import suppress
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError as TransportError
from urllib3.exceptions import InvalidHeader, MaxRetryError
from urllib3.util import Retry

from contract.errors import StageError
from ddpm.files import file_digest
from stages.runtime.reporting import progress_bar, warn

CONNECT_SECONDS = 10.0
"""Longest wait for a connection; a name that cannot be resolved fails sooner."""
READ_SECONDS = 30.0
"""Longest silence of a server."""
RETRIES = 5
"""Retries in a row without progress."""
CONNECT_RETRIES = 2
"""Retries in a row without any connection: without a network the download fails within seconds."""
BACKOFF_SECONDS = 2.0
"""Wait before the second retry; it doubles with each later one. The first retry does not wait."""
MAX_WAIT_SECONDS = 60.0
"""Longest wait before a retry, also if a server requests more by Retry-After."""
PROGRESS_BYTES = 2**20
"""New bytes that count as progress, after which the retries are counted anew."""
DOWNLOADS_PER_FILE = 2
"""A file that arrives with the wrong md5 is downloaded once more from the start."""

_CHUNK_BYTES = 2**18
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class TransferError(StageError):
    """A file cannot be downloaded."""

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class WrongDigestError(StageError):
    """A downloaded file is not the expected one."""

    def __init__(self, address: str, found: str) -> None:
        super().__init__(f"{address} has md5 {found}")
        self.found = found


class _BrokenError(Exception):
    """A transfer ended early and another attempt may help."""


def fetch_verified(address: str, md5: str, folder: Path) -> Path:
    """Download a file into `folder`, where an earlier attempt may have left a part of it.

    Returns:
        The file with this md5; its name differs from that in the address.

    Raises:
        TransferError: the file cannot be downloaded; the part received so far stays.
        WrongDigestError: the file has another md5, also when downloaded again from the start; nothing of it stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{address.rsplit('/', 1)[-1]}.{md5}.part"
    part.touch()
    found = file_digest(part)
    for _ in range(DOWNLOADS_PER_FILE):
        if found != md5:
            _transfer(address, part)
            found = file_digest(part)
        if found == md5:
            return part
        part.write_bytes(b"")
        warn("download", f"{address} arrived with md5 {found} instead of {md5}")
    part.unlink()
    raise WrongDigestError(address, found)


def remove_parts(folder: Path) -> None:
    """Remove what `fetch_verified` left in `folder`, and the folder, if it holds nothing else."""
    for part in folder.glob("*.part"):
        part.unlink()
    with suppress(OSError):  # it holds files of somebody else, or is not there
        folder.rmdir()


def _transfer(address: str, part: Path) -> None:
    """Receive the missing bytes of a file, retrying if that may help."""
    full = Retry(
        total=RETRIES,
        connect=CONNECT_RETRIES,
        backoff_factor=BACKOFF_SECONDS / 2,  # which urllib3 doubles before the second retry
        backoff_jitter=BACKOFF_SECONDS / 2,
        backoff_max=MAX_WAIT_SECONDS,
    )
    left, reached = full, _size(part)
    with requests.Session() as session:
        while True:
            try:
                return _receive(session, address, part)
            except (_BrokenError, requests.RequestException, TransportError) as error:
                # requests wraps the exceptions of urllib3, which say more.
                reason = getattr(error.args[0], "reason", None) if error.args else None
                cause = reason if isinstance(reason, Exception) else error
                if not _may_pass(error):
                    raise TransferError(f"{address} is refused: {cause}", is_transient=False) from error
                if _size(part) - reached >= PROGRESS_BYTES:
                    left, reached = full, _size(part)
                try:
                    left = left.increment("GET", address, error=cause)
                except MaxRetryError:
                    raise TransferError(f"{address} cannot be downloaded: {cause}", is_transient=True) from error
                wait = _choose_wait(left, error)
            warn("download", f"{cause}; resuming from {_size(part) / 1e6:.1f} MB in {wait:.0f} s")
            time.sleep(wait)


def _receive(session: requests.Session, address: str, part: Path) -> None:
    # Without compression: the md5, the size and the ranges are those of the file itself.
    headers = {"Accept-Encoding": "identity"}
    if start := _size(part):
        headers["Range"] = f"bytes={start}-"
    with session.get(address, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.write_bytes(b"")
            raise _BrokenError(f"the server has fewer bytes than the {start} received so far")
        response.raise_for_status()
        total = _prepare_part(response, part)
        with part.open("ab") as file, progress_bar(address.rsplit("/", 1)[-1], total, "B", initial=_size(part)) as bar:
            # read1 returns the bytes that are there; read would lose those that came before a break.
            while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise _BrokenError(f"received {_size(part)} of {total} bytes")


def _prepare_part(response: requests.Response, part: Path) -> int | None:
    """Empty the part if the response holds the whole file; return the size of that, or None if it is not stated."""
    if response.status_code != requests.codes.partial_content:
        part.write_bytes(b"")
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None
    content_range, start = response.headers.get("Content-Range", ""), _size(part)
    match = _RANGE.fullmatch(content_range)
    if match is None or int(match[1]) != start:
        part.write_bytes(b"")
        raise _BrokenError(f"requested the bytes from {start}, got Content-Range {content_range!r}")
    return None if match[2] == "*" else int(match[2])


def _choose_wait(retries: Retry, error: Exception) -> float:
    """Return the seconds that the server requests by Retry-After, within bounds, or else the next backoff."""
    requested = None
    if isinstance(error, requests.HTTPError):
        with suppress(InvalidHeader):
            requested = retries.get_retry_after(error.response.raw)
    return min(requested, MAX_WAIT_SECONDS) if requested else retries.get_backoff_time()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in _PASSING_STATUS
    if isinstance(error, requests.exceptions.SSLError):  # a certificate that is not trusted now will not be later
        return False
    return isinstance(error, _BrokenError | requests.ConnectionError | requests.Timeout | TransportError)


def _size(part: Path) -> int:
    return part.stat().st_size
