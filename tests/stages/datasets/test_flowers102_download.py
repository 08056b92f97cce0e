"""Oxford Flowers 102 from the network: its three files, verified, and errors that say what to do."""

from pathlib import Path

import pytest

from contract.paths import DOWNLOADS
from stages.datasets import DatasetError, flowers102, transfer
from stages.datasets.flowers102 import ARCHIVE, LABELS, SPLITS
from tests.stages.datasets.files import md5, read_files, write_files


@pytest.fixture
def fetch(flowers, waits, fetch_flowers102):
    """Fetches from an address and returns what arrived."""
    return lambda source, archive_md5=None: read_files(fetch_flowers102(source, archive_md5))


@pytest.mark.parametrize("ending", ["", "/", "/102", "/102/"])
def test_the_three_files_come_from_the_mirror(mirror, fetch, waits, ending):
    assert fetch(mirror.address + ending) == read_files(mirror.root)
    # The large file last: the small ones show early that an address is wrong.
    assert mirror.names == [LABELS, SPLITS, ARCHIVE] and waits == []
    assert not DOWNLOADS.exists()


def test_without_a_source_they_come_from_the_official_address(mirror, fetch, monkeypatch):
    monkeypatch.setattr(flowers102, "OFFICIAL_ADDRESS", mirror.address + "/102/")
    assert fetch(None) == read_files(mirror.root)


def test_they_come_over_a_bad_connection(mirror, fetch):
    mirror.faults = {LABELS: [503, 503], SPLITS: ["hung up"], ARCHIVE: ["cut off", 429, "cut off", "other range"]}
    assert fetch(mirror.address) == read_files(mirror.root)


def test_a_lasting_fault_is_an_error_that_may_pass(mirror, fetch):
    mirror.faults[ARCHIVE] = ["hung up"] * 100
    with pytest.raises(DatasetError, match=rf"{mirror.address}/{ARCHIVE} .*set download\.source") as caught:
        fetch(mirror.address)
    assert caught.value.is_passing and mirror.names.count(ARCHIVE) == 1 + transfer.RETRIES


def test_the_next_run_resumes_where_the_last_one_failed(mirror, fetch):
    mirror.faults[ARCHIVE] = ["cut off", 404]
    with pytest.raises(DatasetError, match="stay in build/downloads: run again to resume") as caught:
        fetch(mirror.address)
    assert not caught.value.is_passing
    mirror.requests.clear()
    assert fetch(mirror.address) == read_files(mirror.root)
    # The small files were complete.
    assert mirror.names == [ARCHIVE]
    assert mirror.ranges == [f"bytes={len((mirror.root / ARCHIVE).read_bytes()) // 2}-"]
    assert not DOWNLOADS.exists()


def test_a_file_that_the_mirror_lacks_is_named(mirror, fetch):
    (mirror.root / SPLITS).unlink()
    with pytest.raises(DatasetError, match=rf"{mirror.address}/{SPLITS} is refused: 404 "):
        fetch(mirror.address)
    assert ARCHIVE not in mirror.names


def test_another_archive_is_taken_by_its_stated_digest(mirror, fetch, other_archive):
    expected, found = flowers102.OFFICIAL_MD5[ARCHIVE], other_archive()
    with pytest.raises(DatasetError, match=rf"{ARCHIVE} .*{expected}.*{found}.* set download\.archive_md5"):
        fetch(mirror.address)
    assert fetch(mirror.address, archive_md5=found) == read_files(mirror.root)


def test_other_labels_are_refused_whatever_is_stated(mirror, fetch):
    (mirror.root / LABELS).write_bytes(b"other")
    with pytest.raises(DatasetError, match=rf"{LABELS} .*Only the archive may have other bytes"):
        fetch(mirror.address, archive_md5=md5(b"other"))
    assert ARCHIVE not in mirror.names


def test_a_part_of_one_archive_is_not_joined_to_another(mirror, fetch, other_archive):
    mirror.faults[ARCHIVE] = ["cut off", 404]
    with pytest.raises(DatasetError):
        fetch(mirror.address)
    mirror.requests.clear()
    assert fetch(mirror.address, archive_md5=other_archive()) == read_files(mirror.root)
    assert mirror.ranges == [None] and not DOWNLOADS.exists()


def test_only_missing_and_damaged_files_are_downloaded(mirror, fetch):
    archive = (mirror.root / ARCHIVE).read_bytes()
    write_files(Path("data"), {ARCHIVE: archive, LABELS: b"damaged since"})
    assert fetch(mirror.address) == read_files(mirror.root)
    assert mirror.names == [LABELS, SPLITS]
