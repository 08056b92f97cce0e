"""Oxford Flowers 102: its three files from a folder, verified, and read as they are."""

import tarfile
from collections import Counter
from pathlib import Path

import pytest
from torchvision.datasets import Flowers102 as Torchvision

from contract.class_names import FLOWERS102_CLASSES
from stages.datasets import DATASETS, DatasetError, flowers102
from stages.datasets.flowers102 import ARCHIVE, LABELS, SPLITS
from tests.stages.datasets.files import md5, read_files

FLOWERS = DATASETS["flowers102"]
REAL = Path(__file__).parents[3] / ".." / "shared" / "data" / "flowers-102"


def test_digests_address_and_class_names_are_those_of_torchvision():
    assert dict(Torchvision._file_dict.values()) == flowers102.OFFICIAL_MD5
    assert Torchvision._download_url_prefix.rstrip("/") == flowers102.OFFICIAL_ADDRESS.rstrip("/")
    assert list(FLOWERS102_CLASSES) == Torchvision.classes


def test_a_folder_is_copied(flowers, fetch_flowers102, monkeypatch):
    assert read_files(fetch_flowers102(str(flowers))) == read_files(flowers)
    monkeypatch.setenv("HOME", str(flowers.parent))
    assert read_files(fetch_flowers102(f"~/{flowers.name}")) == read_files(flowers)


@pytest.mark.parametrize("source", ["nowhere", "ftp://mirror/102", "mirror/imagelabels.mat"])
def test_a_source_that_is_neither_folder_nor_address_is_refused(flowers, fetch_flowers102, source):
    with pytest.raises(DatasetError, match=r"download\.source must be a folder .*102flowers.* http\(s\) .* got "):
        fetch_flowers102(source)


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
    # From the dataset's own page.
    assert [image.class_name for image in images[:4:3]] == ["blackberry lily", "passion flower"]
    with tarfile.open(flowers / ARCHIVE) as archive:
        for image in images:
            assert image.content == archive.extractfile(f"jpg/{image.name}").read()


def test_an_image_without_label_is_an_error(flowers, other_archive):
    other_archive(numbers=(1, 7))
    with pytest.raises(DatasetError, match=r"102flowers\.tgz holds image_00007\.jpg"):
        list(FLOWERS.images(flowers))


def test_images_come_one_at_a_time_and_nothing_is_unpacked(flowers):
    before = read_files(flowers)
    assert next(FLOWERS.images(flowers)).number == 3
    assert read_files(flowers) == before


@pytest.mark.parametrize("name", [ARCHIVE, LABELS, SPLITS])
def test_missing_and_wrong_files_are_named(flowers, fetch_flowers102, name):
    (flowers / name).write_bytes(b"other")
    expected = flowers102.OFFICIAL_MD5[name]
    with pytest.raises(DatasetError, match=rf"mirror/{name} .* should be {expected}, got {md5(b'other')}"):
        fetch_flowers102(str(flowers))
    (flowers / name).unlink()
    with pytest.raises(DatasetError, match=rf"mirror/{name} is missing"):
        fetch_flowers102(str(flowers))


def test_another_archive_is_taken_by_its_stated_digest(flowers, fetch_flowers102, other_archive):
    with pytest.raises(DatasetError, match="should be 00000000"):
        fetch_flowers102(str(flowers), archive_md5="0" * 32)  # the official archive is not taken for another
    digest = other_archive()
    with pytest.raises(DatasetError, match=r"set download\.archive_md5"):
        fetch_flowers102(str(flowers))
    assert read_files(fetch_flowers102(str(flowers), archive_md5=digest)) == read_files(flowers)
    (flowers / LABELS).write_bytes(b"other")
    with pytest.raises(DatasetError, match="Only the archive may have other bytes"):
        fetch_flowers102(str(flowers), archive_md5=digest)


def test_verified_files_of_the_last_download_are_used_again(flowers, fetch_flowers102):
    flowers.rename(flowers.parent / "data")
    assert read_files(fetch_flowers102(str(flowers))) == read_files(flowers.parent / "data")


def test_a_damaged_archive_is_an_error_that_names_it(flowers):
    whole = (flowers / ARCHIVE).read_bytes()
    for content in (whole[:200], b"no archive at all", b""):
        (flowers / ARCHIVE).write_bytes(content)
        with pytest.raises(DatasetError, match=rf"mirror/{ARCHIVE} cannot be read"):
            list(FLOWERS.images(flowers))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no copies of the real images at {REAL}")
def test_the_real_dataset_is_read():
    assert FLOWERS.count(REAL) == 8189
    images = {image.number: image for image in FLOWERS.images(REAL)}
    assert Counter(image.split for image in images.values()) == {"train": 1020, "valid": 1020, "test": 6149}
    assert len({image.class_name for image in images.values()}) == 102
    # From the dataset's own listing: the first images are passion flowers.
    assert images[1].class_number == 77 and images[1].content[:3] == b"\xff\xd8\xff"
