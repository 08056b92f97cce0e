"""Files over HTTP: what is asked of the server, and what a bad line and a bad server do."""

import email.utils
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stages.datasets import transfer
from stages.datasets.transfer import PartialFile, TransferError, WrongDigestError, fetch_verified
from tests.stages.datasets.servers import Mirror, serving

NAME = "flowers.bin"
CONTENT = np.random.default_rng(0).bytes(100_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
HALF, THREE_QUARTERS = 50_000, 75_000


@pytest.fixture(autouse=True)
def short_waits(waits, monkeypatch):
    monkeypatch.setattr(transfer, "CONNECT_SECONDS", 2.0)
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.2)


@pytest.fixture
def downloads(tmp_path):
    return tmp_path / "downloads"


@pytest.fixture
def partial(downloads):
    return PartialFile(downloads / f"{NAME}.{MD5}.part")


@pytest.fixture
def left_over(partial):
    """Leaves what an earlier run may have left."""

    def leave(content, address=None, etag=None):
        partial.path.parent.mkdir()
        if address:
            partial.begin(address, etag)
        partial.path.write_bytes(content)

    return leave


@pytest.fixture
def serve(mirror, downloads):
    """Fetches the file from the mirror, to whose requests these troubles happen."""

    def fetch(*troubles, content=CONTENT, address=None):
        (mirror.root / NAME).write_bytes(content)
        mirror.troubles[NAME] = list(troubles)
        return fetch_verified(address or f"{mirror.address}/{NAME}", MD5, downloads).read_bytes()

    return fetch


def etag(content):
    return f'"{hashlib.md5(content).hexdigest()}"'


def test_a_file_comes_whole_by_one_request_as_it_is(serve, mirror, waits):
    assert serve() == CONTENT
    (request,) = mirror.requests
    # Compressed on the way, its ranges and its size would be those of other bytes.
    assert (request.name, request.range, request.encoding) == (NAME, None, "identity")
    assert waits == []


def test_a_file_that_is_there_is_not_asked_for(serve, mirror, left_over):
    left_over(CONTENT)
    assert serve() == CONTENT and mirror.requests == []


def test_the_rest_is_asked_for_after_a_break(serve, mirror, waits):
    assert serve("cut off", "cut off") == CONTENT
    assert mirror.ranges == [None, f"bytes={HALF}-", f"bytes={THREE_QUARTERS}-"]
    assert [request.if_range for request in mirror.requests] == [None, etag(CONTENT), etag(CONTENT)]
    assert mirror.bytes_sent == len(CONTENT)  # and none of them twice
    assert len(waits) == 2


def test_a_server_without_ranges_sends_all_again(serve, mirror):
    mirror.knows_ranges = False
    assert serve("cut off", "cut off") == CONTENT
    assert mirror.ranges == [None, f"bytes={HALF}-", f"bytes={HALF}-"]
    assert mirror.bytes_sent == 2 * len(CONTENT)


@pytest.mark.parametrize("tags", [False, "weak"])
def test_without_a_strong_tag_the_digest_alone_decides(serve, mirror, tags):
    mirror.tags = tags
    assert serve("cut off") == CONTENT
    assert mirror.ranges == [None, f"bytes={HALF}-"]
    assert [request.if_range for request in mirror.requests] == [None, None]


def test_halves_of_two_versions_are_not_joined(serve, mirror, left_over):
    old = bytes(HALF)
    left_over(old, f"{mirror.address}/{NAME}", etag(old))
    assert serve() == CONTENT
    (request,) = mirror.requests
    assert request.range == f"bytes={HALF}-" and request.if_range == etag(old)
    assert mirror.bytes_sent == len(CONTENT)


def test_another_address_is_not_asked_for_the_version_of_the_first(serve, mirror, left_over):
    left_over(CONTENT[:HALF], "http://elsewhere/flowers.bin", '"a tag of its own"')
    assert serve() == CONTENT
    (request,) = mirror.requests
    assert request.range == f"bytes={HALF}-" and request.if_range is None
    assert mirror.bytes_sent == HALF


def test_the_next_run_goes_on(serve, mirror, partial):
    with pytest.raises(TransferError):
        serve("cut off", *[503] * (1 + transfer.RETRIES))
    assert partial.path.read_bytes() == CONTENT[:HALF]
    mirror.requests.clear()
    assert serve() == CONTENT
    assert mirror.ranges == [f"bytes={HALF}-"] and mirror.requests[0].if_range == etag(CONTENT)
    assert mirror.bytes_sent == len(CONTENT)


def test_a_killed_download_goes_on(serve, mirror, partial, downloads, project):
    (mirror.root / NAME).write_bytes(CONTENT)
    mirror.troubles[NAME] = ["stalled"]
    code = "import sys; from pathlib import Path; from stages.datasets.transfer import fetch_verified as fetch; "
    code += "fetch(sys.argv[1], sys.argv[2], Path(sys.argv[3]))"
    arguments = [sys.executable, "-c", code, f"{mirror.address}/{NAME}", MD5, str(downloads)]
    child = subprocess.Popen(arguments, cwd=project, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60.0
    while partial.size < HALF and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(10.0) == -signal.SIGKILL
    assert serve() == CONTENT
    assert mirror.ranges == [None, f"bytes={HALF}-"] and mirror.bytes_sent == len(CONTENT)


def test_a_part_that_is_longer_than_the_file_is_thrown_away(serve, mirror, left_over):
    left_over(CONTENT + b"of something else")
    assert serve() == CONTENT
    assert mirror.ranges == [f"bytes={len(CONTENT) + 17}-", None]


def test_another_range_than_asked_for_is_not_taken(serve, mirror):
    assert serve("cut off", "other range") == CONTENT
    assert mirror.ranges == [None, f"bytes={HALF}-", None]


def test_a_part_with_wrong_bytes_is_fetched_once_more_from_the_start(serve, mirror, left_over):
    left_over(bytes(HALF))
    assert serve() == CONTENT
    assert mirror.ranges == [f"bytes={HALF}-", None]


def test_bytes_garbled_on_the_way_are_fetched_once_more(serve, mirror, waits):
    assert serve("garbled") == CONTENT
    assert mirror.ranges == [None, None] and waits == []


def test_lasting_wrong_bytes_are_an_error_that_keeps_none_of_them(serve, mirror, downloads):
    other = CONTENT[:-1]
    with pytest.raises(WrongDigestError) as caught:
        serve(content=other)
    assert caught.value.found == hashlib.md5(other).hexdigest()
    assert mirror.ranges == [None] * transfer.TRANSFERS
    assert list(downloads.iterdir()) == []


def test_a_file_of_unknown_size_is_verified_by_its_digest(serve, mirror):
    assert serve("no length") == CONTENT
    assert len(mirror.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_overloaded_server_is_asked_again(serve, mirror, waits, status):
    assert serve(status, status, status) == CONTENT
    assert mirror.ranges == [None] * 4
    # At once, then after twice as long each time, and up to half as long of the first at random.
    assert waits[0] == 0.0
    assert [least <= wait <= least + 1.0 for wait, least in zip(waits[1:], [2.0, 4.0], strict=True)] == [True, True]


def test_waits_differ_at_random(serve, waits, downloads):
    # Else all clients of a server that was overloaded would come back together.
    serve(503, 503)
    shutil.rmtree(downloads)
    serve(503, 503)
    first, second = waits[1], waits[3]
    assert first != second


def test_what_stays_unavailable_is_given_up_within_a_minute(serve, mirror, waits):
    with pytest.raises(TransferError, match=rf"{NAME} cannot be downloaded: 503 Server Error: Service Unavailable"):
        serve(*[503] * 100)
    assert len(mirror.requests) == 1 + transfer.RETRIES == 1 + len(waits)
    assert waits == sorted(waits) and 20.0 < sum(waits) < 60.0


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("86400", transfer.MAX_WAIT_SECONDS), ("soon", 0.0)])
def test_a_server_says_when_to_come_back(serve, mirror, waits, asked, waited):
    mirror.retry_after = asked
    assert serve(429) == CONTENT
    assert waits == [waited]


def test_a_server_says_at_which_time_to_come_back(serve, mirror, waits):
    mirror.retry_after = email.utils.formatdate(time.time() + 20.0, usegmt=True)
    assert serve(503) == CONTENT
    assert 15.0 < waits[0] <= 20.0


@pytest.mark.parametrize("status", [400, 403, 404, 410, 501])
def test_a_lasting_refusal_is_not_asked_again(serve, mirror, waits, status):
    with pytest.raises(TransferError, match=rf"{NAME} is refused: {status} "):
        serve(status)
    assert len(mirror.requests) == 1 and waits == []


@pytest.mark.parametrize("trouble", ["silent", "hung up"])
def test_a_server_that_says_nothing_is_asked_again(serve, mirror, trouble):
    assert serve(trouble) == CONTENT
    assert mirror.ranges == [None, None]


def test_a_server_that_stalls_is_asked_for_the_rest(serve, mirror):
    assert serve("stalled") == CONTENT
    assert mirror.ranges == [None, f"bytes={HALF}-"] and mirror.bytes_sent == len(CONTENT)


def test_a_lasting_silence_is_given_up(serve, mirror, monkeypatch):
    assert transfer.CONNECT_SECONDS <= 10 and transfer.READ_SECONDS <= 60
    monkeypatch.setattr(transfer, "READ_SECONDS", 0.05)
    with pytest.raises(TransferError, match=r"cannot be downloaded: .*[Tt]imed out"):
        serve(*["silent"] * 100)
    assert len(mirror.requests) == 1 + transfer.RETRIES


def test_retries_are_counted_anew_after_progress(serve, mirror, monkeypatch):
    monkeypatch.setattr(transfer, "PROGRESS_BYTES", 1)
    assert serve(*["cut off"] * 3 * transfer.RETRIES) == CONTENT
    assert len(mirror.requests) == 1 + 3 * transfer.RETRIES and mirror.bytes_sent == len(CONTENT)


@pytest.mark.parametrize(("knows_ranges", "least"), [(False, 1), (True, 10**6)])
def test_going_round_in_circles_is_no_progress(serve, mirror, monkeypatch, knows_ranges, least):
    # The same half each time, or steps too small to ever arrive.
    mirror.knows_ranges = knows_ranges
    monkeypatch.setattr(transfer, "PROGRESS_BYTES", least)
    with pytest.raises(TransferError, match=r"cannot be downloaded: .*IncompleteRead"):
        serve(*["cut off"] * 100)
    assert len(mirror.requests) == 1 + transfer.RETRIES


@pytest.fixture
def nobody():
    """Host and port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # without listen(): connections are refused
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_nobody_at_the_address_is_given_up_in_seconds(own_network, nobody, downloads, waits):
    with pytest.raises(TransferError, match=r"cannot be downloaded: .*Connection refused"):
        fetch_verified(f"http://{nobody}/{NAME}", MD5, downloads)
    assert len(waits) == transfer.CONNECT_RETRIES and sum(waits) < 5.0


def test_a_name_that_cannot_be_resolved_is_given_up_in_seconds(own_network, downloads, waits, monkeypatch):
    asked = []

    def no_network(host, *arguments):
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(TransferError, match=r"Failed to resolve 'mirror\.invalid'"):
        fetch_verified("https://mirror.invalid/102/flowers.bin", MD5, downloads)
    assert asked == ["mirror.invalid"] * (1 + transfer.CONNECT_RETRIES) and sum(waits) < 5.0


@pytest.mark.parametrize("address", ["http://", "http:///flowers.bin", "http://[flowers.bin"])
def test_an_address_that_is_none_is_refused(own_network, downloads, waits, address):
    with pytest.raises(TransferError, match="is refused: "):
        fetch_verified(address, MD5, downloads)
    assert waits == []


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
def test_a_proxy_is_taken_from_the_environment(serve, mirror, proxy, monkeypatch, variable):
    monkeypatch.setenv(variable, proxy.address)
    assert serve("cut off") == CONTENT
    assert proxy.requests == [f"GET {mirror.address}/{NAME}"] * len(mirror.requests)


def test_hosts_may_be_reached_without_the_proxy(serve, proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert serve() == CONTENT and proxy.requests == []


def test_a_proxy_that_is_not_there_is_given_up_in_seconds(serve, nobody, monkeypatch, waits):
    monkeypatch.setenv("HTTP_PROXY", f"http://{nobody}")
    with pytest.raises(TransferError, match=r"cannot be downloaded: .*[Pp]roxy"):
        serve()
    assert len(waits) == transfer.CONNECT_RETRIES


@pytest.fixture
def secure_mirror(mirror, tmp_path):
    """The mirror under https, with a certificate that nobody has signed; gives its path, too."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=mirror"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command.split() + names, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Mirror(mirror.root)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        yield server, certificate
        server.end_of_silence.set()


def test_the_proxy_carries_https_too(serve, secure_mirror, proxy, monkeypatch):
    server, certificate = secure_mirror
    monkeypatch.setenv("HTTPS_PROXY", proxy.address)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    server.troubles[NAME] = ["cut off"]
    assert serve(address=f"https://{server.host}/{NAME}") == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-"]
    assert proxy.requests == [f"CONNECT {server.host}"] * 2


def test_a_certificate_that_is_not_trusted_is_refused_at_once(serve, secure_mirror, waits):
    server, _ = secure_mirror
    with pytest.raises(TransferError, match="certificate verify failed"):
        serve(address=f"https://{server.host}/{NAME}")
    assert server.requests == [] and waits == []


def test_progress_is_shown_and_breaks_are_told(serve, capsys):
    serve("cut off")
    shown = capsys.readouterr()
    assert f"{NAME}:  50%" in shown.err and f"{NAME}: 100%" in shown.err and "100k/100k" in shown.err
    assert "B/s]" in shown.err
    assert "IncompleteRead" in shown.out and "going on from 0.1 MB in 0 s" in shown.out


def test_the_version_of_a_part_is_noted_whole_or_not(partial, downloads):
    partial.begin("http://mirror/flowers.bin", '"tag"')
    (noted,) = downloads.iterdir()
    assert json.loads(noted.read_text()) == {"address": "http://mirror/flowers.bin", "etag": '"tag"'}
    assert Path(noted).name == f"{NAME}.{MD5}.part.json"
