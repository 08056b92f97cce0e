"""Oxford Flowers 102 from the network: its three files, verified, and what is said where they cannot be had."""

import hashlib
from pathlib import Path

import pytest

from contract.paths import DOWNLOADS
from stages.datasets import DATASETS, DatasetError, flowers102, transfer
from stages.datasets.flowers102 import ARCHIVE, LABELS, SPLITS
from tasks.download import NETWORK_FAILURE


@pytest.fixture
def fetch(folder, flowers, waits, make_params):
    """Fetches from an address and gives what came."""

    def fetch(source, archive_md5=None):
        target = Path("incoming")
        target.mkdir(exist_ok=True)
        changes = {"download.dataset": "flowers102", "download.source": source, "download.archive_md5": archive_md5}
        DATASETS["flowers102"].fetch(make_params(changes).download, target, previous=Path("data"))
        return contents(target)

    return fetch


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("ending", ["", "/", "/102", "/102/"])
def test_the_three_files_come_from_the_mirror(mirror, fetch, waits, ending):
    assert fetch(mirror.address + ending) == contents(mirror.root)
    # The long one last: a wrong address shows before it is waited for.
    assert mirror.names == [LABELS, SPLITS, ARCHIVE] and waits == []
    assert not DOWNLOADS.exists()


def test_without_a_source_they_come_from_the_official_address(mirror, fetch, monkeypatch):
    monkeypatch.setattr(flowers102, "OFFICIAL_ADDRESS", mirror.address + "/102/")
    assert fetch(None) == contents(mirror.root)


def test_they_come_through_a_proxy(mirror, fetch, proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy.address)
    assert fetch(mirror.address) == contents(mirror.root)
    assert proxy.requests == [f"GET {mirror.address}/{name}" for name in (LABELS, SPLITS, ARCHIVE)]


def test_a_bad_line_is_got_through(mirror, fetch):
    mirror.troubles = {LABELS: [503, 503], SPLITS: ["hung up"], ARCHIVE: ["cut off", 429, "cut off", "other range"]}
    assert fetch(mirror.address) == contents(mirror.root)
    size = len((mirror.root / ARCHIVE).read_bytes())
    half, most = size // 2, size // 2 + (size - size // 2) // 2
    ranges = [request.range for request in mirror.requests if request.name == ARCHIVE]
    assert ranges == [None, f"bytes={half}-", f"bytes={half}-", f"bytes={most}-", None]


def test_a_lasting_trouble_is_an_error_that_says_what_to_do(mirror, fetch):
    mirror.troubles[ARCHIVE] = ["hung up"] * 100
    with pytest.raises(DatasetError, match=rf"{mirror.address}/{ARCHIVE} {NETWORK_FAILURE}: .*set download\.source"):
        fetch(mirror.address)
    assert mirror.names.count(ARCHIVE) == 1 + transfer.RETRIES


def test_the_next_run_goes_on_where_the_last_one_failed(mirror, fetch):
    mirror.troubles[ARCHIVE] = ["cut off", 404]
    with pytest.raises(DatasetError, match=r"What has arrived stays in build/downloads: run it again to go on"):
        fetch(mirror.address)
    assert contents(Path("incoming")) == {}  # nothing half done among what is finished
    mirror.requests.clear()
    assert fetch(mirror.address) == contents(mirror.root)
    # The small files had come whole.
    assert mirror.names == [ARCHIVE]
    assert mirror.ranges == [f"bytes={len((mirror.root / ARCHIVE).read_bytes()) // 2}-"]
    assert not DOWNLOADS.exists()


def test_a_file_that_the_mirror_lacks_is_named(mirror, fetch):
    (mirror.root / SPLITS).unlink()
    with pytest.raises(DatasetError, match=rf"{mirror.address}/{SPLITS} is refused: 404 .*Not Found"):
        fetch(mirror.address)
    assert ARCHIVE not in mirror.names


def test_other_bytes_are_refused_with_both_digests(mirror, fetch, other_archive):
    expected, found = flowers102.OFFICIAL_MD5[ARCHIVE], other_archive()
    message = (
        rf"{ARCHIVE} is not the expected file.* should be {expected}.*{found}.*state their md5 as download.archive"
    )
    with pytest.raises(DatasetError, match=message):
        fetch(mirror.address)
    assert fetch(mirror.address, archive_md5=found) == contents(mirror.root)


@pytest.mark.parametrize("name", [LABELS, SPLITS])
def test_other_labels_and_splits_are_refused_whatever_is_stated(mirror, fetch, name):
    (mirror.root / name).write_bytes(b"other")
    stated = hashlib.md5(b"other").hexdigest()
    with pytest.raises(DatasetError, match=rf"{name} is not the expected file.*Only the archive may have other bytes"):
        fetch(mirror.address, archive_md5=stated)
    assert ARCHIVE not in mirror.names


def test_what_one_archive_left_is_not_joined_to_another(mirror, fetch, other_archive):
    mirror.troubles[ARCHIVE] = ["cut off", 404]
    with pytest.raises(DatasetError):
        fetch(mirror.address)
    mirror.requests.clear()
    assert fetch(mirror.address, archive_md5=other_archive()) == contents(mirror.root)
    assert mirror.ranges == [None]
    assert not DOWNLOADS.exists()


def test_verified_files_are_not_fetched_again(mirror, fetch):
    data = Path("data")
    data.mkdir()
    for name in (ARCHIVE, LABELS):
        (data / name).write_bytes((mirror.root / name).read_bytes())
    (data / LABELS).write_bytes(b"damaged since")
    assert fetch(mirror.address) == contents(mirror.root)
    assert mirror.names == [LABELS, SPLITS]
