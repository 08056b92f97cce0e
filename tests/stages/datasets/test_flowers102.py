"""Oxford Flowers 102: its three files from a folder or the network, verified, and read as they are."""

import tarfile
from collections import Counter
from pathlib import Path

import pytest
from torchvision.datasets import Flowers102 as Torchvision

from contract.class_names import FLOWERS102_CLASSES
from contract.errors import StageError
from contract.paths import DOWNLOADS
from stages.datasets import DATASETS, flowers102, transfer
from stages.datasets.flowers102 import ARCHIVE, LABELS, SPLITS
from stages.datasets.transfer import remove_parts
from tests.stages.datasets.files import md5, read_files, write_files

FLOWERS = DATASETS["flowers102"]
REAL = Path(__file__).parents[3] / ".." / "shared" / "data" / "flowers-102"


@pytest.fixture
def fetch_from(flowers, waits, fetch):
    """Fetches from a folder or address and returns what arrived."""

    def fetch_from(source, archive_md5=None):
        return read_files(fetch("flowers102", {"download.source": source, "download.archive_md5": archive_md5}))

    return fetch_from


@pytest.fixture(params=["folder", "mirror"])
def source(request, flowers):
    """The folder of the six photographs, and the address of its web server."""
    return str(flowers) if request.param == "folder" else request.getfixturevalue("mirror").address


def test_digests_address_and_class_names_are_those_of_torchvision():
    assert dict(Torchvision._file_dict.values()) == flowers102.OFFICIAL_MD5
    assert Torchvision._download_url_prefix.rstrip("/") == flowers102.OFFICIAL_ADDRESS.rstrip("/")
    assert list(FLOWERS102_CLASSES) == Torchvision.classes


def test_a_folder_is_copied(flowers, fetch_from, monkeypatch):
    monkeypatch.setenv("HOME", str(flowers.parent))
    assert fetch_from(str(flowers)) == fetch_from(f"~/{flowers.name}") == read_files(flowers)


@pytest.mark.parametrize("ending", ["", "/", "/102", "/102/"])
def test_the_three_files_come_from_a_mirror(mirror, fetch_from, waits, ending):
    assert fetch_from(mirror.address + ending) == read_files(mirror.root)
    # The large file last: the small ones show early that an address is wrong.
    assert mirror.names == [LABELS, SPLITS, ARCHIVE] and waits == []
    # They are there until they stand in data/: DVC may still fail.
    mirror.requests.clear()
    assert fetch_from(mirror.address + ending) == read_files(mirror.root) and mirror.names == []


def test_without_a_source_they_come_from_the_official_address(mirror, fetch_from, monkeypatch):
    monkeypatch.setattr(flowers102, "OFFICIAL_ADDRESS", mirror.address + "/102/")
    assert fetch_from(None) == read_files(mirror.root)


def test_only_missing_and_damaged_files_are_fetched_again(flowers, source, fetch_from):
    expected = read_files(flowers)
    write_files(Path("data"), {ARCHIVE: expected[ARCHIVE], LABELS: b"damaged since"})
    (flowers / ARCHIVE).unlink()
    assert fetch_from(source) == expected


@pytest.mark.parametrize("address", ["nowhere", "ftp://mirror/102", "mirror/imagelabels.mat"])
def test_a_source_that_is_neither_folder_nor_address_is_refused(fetch_from, address):
    with pytest.raises(StageError, match=r"download\.source must be a folder .*102flowers.* http\(s\) .* got "):
        fetch_from(address)


@pytest.mark.parametrize("name", [ARCHIVE, LABELS, SPLITS])
def test_missing_and_wrong_files_are_named(flowers, source, fetch_from, name):
    expected = flowers102.OFFICIAL_MD5[name]
    (flowers / name).write_bytes(b"other")
    with pytest.raises(StageError, match=rf"{source}/{name} .* should be {expected}, got {md5(b'other')}"):
        fetch_from(source)
    (flowers / name).unlink()
    with pytest.raises(StageError, match=rf"{source}/{name} is (missing|refused: 404)"):
        fetch_from(source)


def test_another_archive_is_taken_by_its_stated_digest(flowers, source, fetch_from, other_archive):
    with pytest.raises(StageError, match="should be 00000000"):
        fetch_from(source, archive_md5="0" * 32)  # the official archive is not taken for another
    digest = other_archive()
    with pytest.raises(StageError, match=r"set download\.archive_md5"):
        fetch_from(source)
    assert fetch_from(source, archive_md5=digest) == read_files(flowers)
    remove_parts(DOWNLOADS)  # as once they stand in data/
    (flowers / LABELS).write_bytes(b"other")
    with pytest.raises(StageError, match="Only the archive may have other bytes"):
        fetch_from(source, archive_md5=digest)


def test_a_lasting_fault_is_an_error_that_may_pass(mirror, fetch_from):
    mirror.faults[ARCHIVE] = ["hung up"] * 100
    with pytest.raises(StageError, match=rf"{mirror.address}/{ARCHIVE} .*set download\.source") as caught:
        fetch_from(mirror.address)
    assert caught.value.is_transient and mirror.names.count(ARCHIVE) == 1 + transfer.RETRIES


@pytest.mark.parametrize("is_other", [False, True])
def test_the_next_run_resumes_unless_it_asks_for_another_archive(mirror, fetch_from, other_archive, is_other):
    mirror.faults[ARCHIVE] = ["cut off", 404]
    with pytest.raises(StageError, match="stay in build/downloads: run again to resume") as caught:
        fetch_from(mirror.address)
    assert not caught.value.is_transient
    mirror.requests.clear()
    half = len((mirror.root / ARCHIVE).read_bytes()) // 2
    assert fetch_from(mirror.address, other_archive() if is_other else None) == read_files(mirror.root)
    # The small files were complete.
    assert mirror.names == [ARCHIVE] and mirror.ranges == [None if is_other else f"bytes={half}-"]


def test_each_image_comes_with_its_label_and_official_split(flowers):
    before, images = read_files(flowers), list(FLOWERS.images(flowers))
    assert read_files(flowers) == before  # nothing is unpacked
    assert [(image.number, image.class_number, image.split) for image in images] == [
        (3, 102, "test"),
        (1, 1, "train"),
        (6, 51, "test"),
        (2, 77, "valid"),
        (5, 1, "test"),
        (4, 2, "train"),
    ]
    assert FLOWERS.count(flowers) == len(images)
    # From the dataset's own page.
    assert [image.class_name for image in images[:4:3]] == ["blackberry lily", "passion flower"]
    with tarfile.open(flowers / ARCHIVE) as archive:
        for image in images:
            assert image.content == archive.extractfile(f"jpg/{image.name}").read()


def test_an_image_without_label_is_an_error(flowers, other_archive):
    other_archive(numbers=(1, 7))
    images = FLOWERS.images(flowers)
    assert next(images).number == 1  # images come one at a time
    with pytest.raises(StageError, match=r"102flowers\.tgz holds image_00007\.jpg"):
        next(images)


def test_a_damaged_archive_is_an_error_that_names_it(flowers):
    whole = (flowers / ARCHIVE).read_bytes()
    for content in (whole[:200], b"no archive at all", b""):
        (flowers / ARCHIVE).write_bytes(content)
        with pytest.raises(StageError, match=rf"mirror/{ARCHIVE} cannot be read"):
            list(FLOWERS.images(flowers))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no copies of the real images at {REAL}")
def test_the_real_dataset_is_read():
    assert FLOWERS.count(REAL) == 8189
    images = {image.number: image for image in FLOWERS.images(REAL)}
    assert Counter(image.split for image in images.values()) == {"train": 1020, "valid": 1020, "test": 6149}
    assert len({image.class_name for image in images.values()}) == 102
    # From the dataset's own listing: the first images are passion flowers.
    assert images[1].class_number == 77 and images[1].content[:3] == b"\xff\xd8\xff"
