"""Oxford Flowers 102 from a mirror: what a network does, and what is said of it."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pooch.core
import pytest

from stages.datasets import DATASETS, DatasetError, flowers102
from stages.datasets.flowers102 import ARCHIVE, LABELS, SPLITS


class Mirror(ThreadingHTTPServer):
    """Serves a directory; `troubles` holds, for a name, what happens to its next requests."""

    daemon_threads = True

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), MirrorHandler)
        self.root = root
        self.troubles = {}
        self.requests = []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class MirrorHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        folder, _, name = self.path.rpartition("/")
        self.server.requests.append(name)
        trouble = next(iter(self.server.troubles.get(name, [])), None)
        if trouble:
            self.server.troubles[name].pop(0)
        path = self.server.root / name
        if folder not in {"", "/102"} or not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        if trouble == "unavailable":
            self.send_error(503)
            return
        if trouble == "garbled":
            content = bytes(len(content))
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if trouble == "cut off" else content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def mirror(flowers):
    server = Mirror(flowers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch):
    """The waits between attempts, which are noted and not waited."""
    noted = []
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=noted.append))
    return noted


@pytest.fixture
def fetch(tmp_path, make_params):
    def fetch(source, archive_md5=None):
        target = tmp_path / "incoming"
        target.mkdir(exist_ok=True)
        changes = {"download.dataset": "flowers102", "download.source": source, "download.archive_md5": archive_md5}
        DATASETS["flowers102"].fetch(make_params(changes).download, target, previous=tmp_path / "data")
        return {path.name: path.read_bytes() for path in target.iterdir()}

    return fetch


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("ending", ["", "/", "/102", "/102/"])
def test_the_three_files_come_from_the_mirror(mirror, fetch, waits, ending):
    assert fetch(mirror.address + ending) == contents(mirror.root)
    assert sorted(mirror.requests) == sorted([ARCHIVE, LABELS, SPLITS]) and waits == []


def test_without_a_source_they_come_from_the_official_address(mirror, fetch, monkeypatch):
    monkeypatch.setattr(flowers102, "OFFICIAL_ADDRESS", mirror.address + "/102/")
    assert fetch(None) == contents(mirror.root)


@pytest.mark.parametrize("trouble", ["cut off", "garbled", "unavailable"])
def test_a_passing_trouble_is_tried_again(mirror, fetch, waits, trouble):
    mirror.troubles[ARCHIVE] = [trouble, trouble]
    assert fetch(mirror.address) == contents(mirror.root)
    assert mirror.requests.count(ARCHIVE) == 3 and len(waits) == 2


def test_a_lasting_trouble_is_an_error_that_says_what_to_do(mirror, fetch, waits):
    mirror.troubles[ARCHIVE] = ["cut off"] * 100
    with pytest.raises(DatasetError, match=rf"{mirror.address}/{ARCHIVE} cannot be downloaded: .*set download\.source"):
        fetch(mirror.address)
    assert mirror.requests.count(ARCHIVE) == 1 + flowers102.RETRIES
    # Half a minute at most is waited.
    assert len(waits) == flowers102.RETRIES and 0 < sum(waits) <= 30


def test_a_file_that_the_mirror_lacks_is_named(mirror, fetch, waits):
    (mirror.root / SPLITS).unlink()
    with pytest.raises(DatasetError, match=rf"{mirror.address}/{SPLITS} cannot be downloaded: 404 .*Not Found"):
        fetch(mirror.address)


def test_other_bytes_are_refused_with_both_digests(mirror, fetch, waits, other_archive):
    expected, found = flowers102.OFFICIAL_MD5[ARCHIVE], other_archive()
    with pytest.raises(DatasetError, match=rf"{ARCHIVE} is not the expected file.* should be {expected}.*{found}"):
        fetch(mirror.address)
    assert fetch(mirror.address, archive_md5=found) == contents(mirror.root)


def test_nothing_half_done_is_left(mirror, fetch, waits, tmp_path):
    mirror.troubles[ARCHIVE] = ["cut off"] * 100
    with pytest.raises(DatasetError):
        fetch(mirror.address)
    assert contents(tmp_path / "incoming") == {}


def test_nobody_at_the_address_is_an_error(mirror, fetch, waits):
    address = mirror.address
    mirror.server_close()  # the port is closed now
    with pytest.raises(DatasetError, match=rf"{address}/{ARCHIVE} cannot be downloaded: .*refused"):
        fetch(address)


def test_an_address_that_is_none_is_an_error(fetch, waits, flowers):
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        fetch("http://")


def test_verified_files_are_not_fetched_again(mirror, fetch, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in (ARCHIVE, LABELS):
        (data / name).write_bytes((mirror.root / name).read_bytes())
    (data / LABELS).write_bytes(b"damaged since")
    assert fetch(mirror.address) == contents(mirror.root)
    assert sorted(mirror.requests) == sorted([LABELS, SPLITS])


def test_a_silent_server_is_given_up(mirror, fetch, waits, monkeypatch):
    assert flowers102.TIMEOUT_SECONDS <= 60
    silent = threading.Event()
    monkeypatch.setattr(MirrorHandler, "do_GET", lambda _: silent.wait(5.0))
    monkeypatch.setattr(flowers102, "TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(flowers102, "RETRIES", 1)
    with pytest.raises(DatasetError, match="timed out"):
        fetch(mirror.address)
    silent.set()
