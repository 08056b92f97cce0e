"""Files over HTTP: what is requested, and what a bad connection and a bad server lead to."""

import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode

import numpy as np
import pytest

from stages.datasets import transfer
from stages.datasets.transfer import TransferError, WrongDigestError, fetch_verified
from tests.stages.datasets.files import md5

NAME = "flowers.bin"
CONTENT = np.random.default_rng(0).bytes(100_000)
MD5 = md5(CONTENT)
HALF, THREE_QUARTERS = 50_000, 75_000
ENDLESS = 100


@pytest.fixture
def downloads(tmp_path):
    return tmp_path / "downloads"


@pytest.fixture
def part(downloads):
    """Where the received bytes lie."""
    downloads.mkdir()
    return downloads / f"{NAME}.{MD5}.part"


@pytest.fixture
def fetch(mirror, downloads, waits):
    """Fetches the file from the mirror, to whose requests these faults happen."""

    def fetch(*faults, content=CONTENT, address=None):
        (mirror.root / NAME).write_bytes(content)
        mirror.faults[NAME] = list(faults)
        return fetch_verified(address or f"{mirror.address}/{NAME}", MD5, downloads).read_bytes()

    return fetch


@pytest.mark.parametrize("faults", [[], ["no length"]])
def test_a_file_comes_whole_by_one_uncompressed_request(fetch, mirror, waits, faults):
    assert fetch(*faults) == CONTENT and mirror.ranges == [None] and waits == []
    # Compressed, its size and ranges would be those of other bytes.
    assert mirror.requests[0][1]["Accept-Encoding"] == "identity"


def test_a_complete_file_is_not_requested(fetch, mirror, part):
    part.write_bytes(CONTENT)
    assert fetch() == CONTENT and mirror.requests == []


def test_name_and_password_come_from_netrc(fetch, mirror, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert fetch() == CONTENT
    assert mirror.requests[0][1]["Authorization"] == f"Basic {b64encode(b'user:secret').decode()}"


@pytest.mark.parametrize(("knows_ranges", "second_part"), [(True, THREE_QUARTERS), (False, HALF)])
def test_after_a_break_the_rest_is_requested(fetch, mirror, waits, knows_ranges, second_part):
    # A server that knows no ranges sends everything again.
    mirror.knows_ranges = knows_ranges
    assert fetch("cut off", "cut off") == CONTENT
    assert mirror.ranges == [None, f"bytes={HALF}-", f"bytes={second_part}-"] and len(waits) == 2


def test_a_killed_download_resumes(fetch, mirror, part, project):
    (mirror.root / NAME).write_bytes(CONTENT)
    mirror.faults[NAME] = ["stalled"]
    code = "import sys; from pathlib import Path; from stages.datasets.transfer import fetch_verified as fetch; "
    code += "fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]))"
    arguments = [sys.executable, "-c", code, f"{mirror.address}/{NAME}", MD5, str(part.parent)]
    child = subprocess.Popen(arguments, cwd=project, stderr=subprocess.DEVNULL)
    while child.poll() is None and not (part.is_file() and part.stat().st_size):
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    received = part.stat().st_size
    assert fetch() == CONTENT and mirror.ranges == [None, f"bytes={received}-"]


@pytest.mark.parametrize(
    ("received", "faults"),
    [(CONTENT + b"more", []), (CONTENT[:HALF], ["other range"]), (bytes(HALF), []), (CONTENT[:HALF], ["garbled"])],
    ids=["longer than the file", "another range than requested", "half of another version", "garbled"],
)
def test_a_part_that_does_not_fit_is_downloaded_anew(fetch, mirror, part, received, faults):
    part.write_bytes(received)
    assert fetch(*faults) == CONTENT
    assert mirror.ranges == [f"bytes={len(received)}-", None]


def test_lasting_wrong_bytes_are_an_error_that_keeps_none_of_them(fetch, mirror, downloads):
    with pytest.raises(WrongDigestError) as caught:
        fetch(content=CONTENT[:-1])
    assert caught.value.found == md5(CONTENT[:-1]) and not caught.value.is_transient
    assert mirror.ranges == [None, None] and list(downloads.iterdir()) == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_overloaded_server_is_asked_again_after_growing_waits(fetch, mirror, waits, status):
    assert fetch(status, status, status) == CONTENT and len(mirror.requests) == 4
    # At once, then after twice as long each time, plus up to a second at random, so that clients do not come together.
    assert waits[0] == 0.0 and 2.0 < waits[1] <= 3.0 and 4.0 < waits[2] <= 5.0


def test_a_server_that_stays_unavailable_is_given_up_within_a_minute(fetch, mirror, waits):
    with pytest.raises(TransferError, match=rf"{NAME} cannot be downloaded: 503") as caught:
        fetch(*[503] * ENDLESS)
    assert caught.value.is_transient
    assert len(mirror.requests) == 1 + transfer.RETRIES and 20.0 < sum(waits) < 60.0


@pytest.mark.parametrize(
    ("stated", "expected"), [("7", 7.0), ("86400", 60.0), ("Fri, 01 Jan 2100 00:00:00 GMT", 60.0), ("soon", 0.0)]
)
def test_a_server_says_when_to_come_back(fetch, mirror, waits, stated, expected):
    mirror.retry_after = stated
    assert fetch(429) == CONTENT and waits == [expected]


@pytest.mark.parametrize("status", [400, 403, 404, 410, 501])
def test_a_refusal_is_not_asked_again(fetch, mirror, waits, status):
    with pytest.raises(TransferError, match=rf"{NAME} is refused: {status} ") as caught:
        fetch(status)
    assert not caught.value.is_transient and len(mirror.requests) == 1 and waits == []


@pytest.mark.parametrize("fault", ["hung up", "silent", "stalled"])
def test_a_server_that_hangs_up_or_falls_silent_is_asked_again(fetch, mirror, monkeypatch, fault):
    monkeypatch.setattr(transfer, "READ_SECONDS", 1.0)  # it would be silent for a minute
    assert fetch(fault) == CONTENT and len(mirror.requests) == 2


def test_a_lasting_silence_is_given_up(fetch, waits, monkeypatch):
    assert transfer.CONNECT_SECONDS <= 10 and transfer.READ_SECONDS <= 60
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.05)
    with pytest.raises(TransferError, match=r"cannot be downloaded: .*[Tt]imed out"):
        fetch(*["silent"] * ENDLESS)
    assert len(waits) == transfer.RETRIES


def test_retries_are_counted_anew_after_progress(fetch, mirror, monkeypatch):
    monkeypatch.setattr(transfer, "PROGRESS_BYTES", 1)
    assert fetch(*["cut off"] * 3 * transfer.RETRIES) == CONTENT
    assert len(mirror.requests) == 1 + 3 * transfer.RETRIES


@pytest.mark.parametrize(("knows_ranges", "least"), [(False, 1), (True, 10**6)])
def test_the_same_half_again_or_tiny_steps_are_no_progress(fetch, mirror, monkeypatch, knows_ranges, least):
    mirror.knows_ranges = knows_ranges
    monkeypatch.setattr(transfer, "PROGRESS_BYTES", least)
    with pytest.raises(TransferError, match="cannot be downloaded"):
        fetch(*["cut off"] * ENDLESS)
    assert len(mirror.requests) == 1 + transfer.RETRIES


@pytest.fixture
def closed_port():
    """Address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listen(): connections are refused
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_nobody_at_the_address_or_no_proxy_is_given_up_soon(fetch, closed_port, waits, monkeypatch):
    with pytest.raises(TransferError, match=r"cannot be downloaded: .*Connection refused") as caught:
        fetch(address=f"{closed_port}/{NAME}")
    assert caught.value.is_transient and len(waits) == transfer.CONNECT_RETRIES and sum(waits) < 5.0
    monkeypatch.setenv("HTTP_PROXY", closed_port)
    with pytest.raises(TransferError, match=r"cannot be downloaded: .*[Pp]roxy"):
        fetch()
    assert len(waits) == 2 * transfer.CONNECT_RETRIES
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert fetch() == CONTENT


@pytest.mark.parametrize("address", ["http://", "http:///flowers.bin", "http://[flowers.bin"])
def test_a_malformed_address_is_refused(own_network, downloads, waits, address):
    with pytest.raises(TransferError, match="is refused: "):
        fetch_verified(address, MD5, downloads)
    assert waits == []


def test_an_https_address_without_a_valid_certificate_is_refused(fetch, mirror, waits):
    with pytest.raises(TransferError, match=r"is refused: .*SSL"):
        fetch(address=f"https://{mirror.host}/{NAME}")
    assert mirror.requests == [] and waits == []


def test_progress_is_shown_and_a_break_gets_a_warning(fetch, capsys):
    fetch("cut off")
    shown = capsys.readouterr()
    assert f"{NAME}:  50%" in shown.err and f"{NAME}: 100%" in shown.err and "B/s]" in shown.err
    assert "warning: " in shown.out and "resuming from 0.1 MB in 0 s" in shown.out
