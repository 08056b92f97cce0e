"""Oxford Flowers 102: its three files from a directory, verified, and read as they are."""

import hashlib
import shutil
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from torchvision.datasets import Flowers102 as Torchvision

from contract.class_names import FLOWERS102_CLASSES
from stages.datasets import DATASETS, DatasetError, flowers102
from stages.datasets.flowers102 import ARCHIVE, LABELS, SPLITS

FLOWERS = DATASETS["flowers102"]
REAL = Path(__file__).parents[3] / ".." / "shared" / "data" / "flowers-102"


@pytest.fixture
def fetch(tmp_path, make_params):
    """Fetches from a source and gives the folder of the three files."""

    def fetch(source, archive_md5=None, previous="data"):
        target = tmp_path / "incoming"
        target.mkdir()
        changes = {"download.dataset": "flowers102", "download.source": source, "download.archive_md5": archive_md5}
        FLOWERS.fetch(make_params(changes).download, target, previous=tmp_path / previous)
        return target

    return fetch


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_expected_digests_are_those_that_torchvision_knows():
    assert dict(Torchvision._file_dict.values()) == flowers102.OFFICIAL_MD5
    assert Torchvision._download_url_prefix.rstrip("/") == flowers102.OFFICIAL_ADDRESS.rstrip("/")


def test_a_directory_is_copied(flowers, fetch):
    assert contents(fetch(str(flowers))) == contents(flowers)


@pytest.mark.parametrize("source", ["nowhere", "ftp://mirror/102", "mirror/imagelabels.mat"])
def test_a_source_that_is_neither_a_directory_nor_an_address_is_refused(flowers, fetch, monkeypatch, source):
    monkeypatch.chdir(flowers.parent)
    message = (
        r"download\.source must be a directory that holds 102flowers\.tgz, .* or an http\(s\) address of them, got "
    )
    with pytest.raises(DatasetError, match=message):
        fetch(source)


def test_home_is_understood(flowers, fetch, monkeypatch):
    monkeypatch.setenv("HOME", str(flowers.parent))
    assert contents(fetch(f"~/{flowers.name}")) == contents(flowers)


def test_each_image_comes_with_its_label_and_official_split(flowers):
    images = list(FLOWERS.images(flowers))
    assert [(image.number, image.class_number, image.split) for image in images] == [
        (3, 102, "test"),
        (1, 1, "train"),
        (6, 51, "test"),
        (2, 77, "valid"),
        (5, 1, "test"),
        (4, 2, "train"),
    ]
    assert FLOWERS.count(flowers) == len(images)
    assert images[0].name == "image_00003.jpg"
    with tarfile.open(flowers / ARCHIVE) as archive:
        for image in images:
            assert image.content == archive.extractfile(f"jpg/{image.name}").read()


def test_labels_count_from_one_in_the_order_of_the_class_names(flowers):
    names = {image.class_number: image.class_name for image in FLOWERS.images(flowers)}
    # The two ends and one between, from the dataset's own page.
    assert names[1] == "pink primrose" and names[77] == "passion flower" and names[102] == "blackberry lily"


def test_the_class_names_are_those_that_torchvision_knows():
    assert list(FLOWERS102_CLASSES) == Torchvision.classes and len(set(FLOWERS102_CLASSES)) == 102


def test_an_image_without_label_is_an_error(flowers, other_archive):
    other_archive(numbers=(1, 7))
    with pytest.raises(DatasetError, match=r"102flowers\.tgz holds image_00007\.jpg, of which imagelabels\.mat and"):
        list(FLOWERS.images(flowers))


def test_the_archive_is_read_as_a_stream(flowers, monkeypatch):
    # One image at a time, with nothing unpacked and no way back: memory and disk stay as they are.
    modes = []
    opened = tarfile.open

    def watched(*arguments, **options):
        modes.append(options["mode"])
        return opened(*arguments, **options)

    monkeypatch.setattr(tarfile, "open", watched)
    before = contents(flowers)
    first = next(FLOWERS.images(flowers))
    assert first.number == 3 and modes == ["r|gz"]
    assert contents(flowers) == before


@pytest.mark.parametrize("missing", [ARCHIVE, LABELS, SPLITS])
def test_a_file_that_a_directory_lacks_is_named(flowers, fetch, missing):
    (flowers / missing).unlink()
    with pytest.raises(DatasetError, match=rf"mirror/{missing} is missing; download\.source must hold 102flowers\.tgz"):
        fetch(str(flowers))


@pytest.mark.parametrize("changed", [ARCHIVE, LABELS, SPLITS])
def test_other_bytes_are_refused_with_both_digests(flowers, fetch, changed):
    expected = flowers102.OFFICIAL_MD5[changed]
    (flowers / changed).write_bytes(b"other")
    found = hashlib.md5(b"other").hexdigest()
    message = rf"mirror/{changed} is not the expected file: its md5 should be {expected}, got {found}"
    with pytest.raises(DatasetError, match=message):
        fetch(str(flowers))


def test_another_archive_is_taken_by_its_stated_digest(flowers, fetch, other_archive):
    digest = other_archive()
    with pytest.raises(DatasetError, match=r"state their md5 as download\.archive_md5"):
        fetch(str(flowers))
    shutil.rmtree(flowers.parent / "incoming")
    assert contents(fetch(str(flowers), archive_md5=digest)) == contents(flowers)


def test_a_stated_digest_does_not_let_the_official_archive_through(flowers, fetch):
    with pytest.raises(DatasetError, match=f"its md5 should be {'0' * 32}"):
        fetch(str(flowers), archive_md5="0" * 32)


def test_a_stated_digest_excuses_no_other_file(flowers, fetch, other_archive):
    digest = other_archive()
    (flowers / LABELS).write_bytes(b"other")
    with pytest.raises(DatasetError, match=LABELS):
        fetch(str(flowers), archive_md5=digest)


def test_verified_files_are_not_fetched_again(flowers, fetch):
    flowers.rename(flowers.parent / "data")
    source = str(flowers)  # gone
    assert contents(fetch(source)) == contents(flowers.parent / "data")


def test_a_damaged_archive_is_an_error_that_names_it(flowers):
    whole = (flowers / ARCHIVE).read_bytes()
    for content in (whole[:200], b"no archive at all", b""):
        (flowers / ARCHIVE).write_bytes(content)
        with pytest.raises(DatasetError, match=rf"mirror/{ARCHIVE} cannot be read"):
            list(FLOWERS.images(flowers))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no copies of the real images at {REAL}")
def test_the_real_dataset_is_read():
    assert FLOWERS.count(REAL) == 8189
    images = {image.number: image for image in islice(FLOWERS.images(REAL), 8189)}
    assert Counter(image.split for image in images.values()) == {"train": 1020, "valid": 1020, "test": 6149}
    assert len({image.class_name for image in images.values()}) == 102
    # Of the dataset's own listing: the first images are passion flowers.
    assert images[1].class_number == 77 and images[1].class_name == "passion flower"
    assert images[1].content[:3] == b"\xff\xd8\xff"
