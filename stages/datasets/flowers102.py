"""Oxford Flowers 102 (Nilsback & Zisserman 2008): 8,189 photographs, 102 classes, official splits."""

import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract.class_names import FLOWERS102_CLASSES
from contract.paths import DOWNLOADS
from contract.sections import DownloadParams
from ddpm.files import file_digest
from stages.datasets.source import DatasetError, SourceImage, SplitName
from stages.datasets.transfer import TransferError, WrongDigestError, fetch_verified

OFFICIAL_ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
ARCHIVE, LABELS, SPLITS = "102flowers.tgz", "imagelabels.mat", "setid.mat"
OFFICIAL_MD5 = {  # in this order they are fetched: the two small ones show early that an address is wrong
    LABELS: "e0620be6f572b9609742df49c70aed4d",
    SPLITS: "a5357ecc9cb78c4bef273ce3793fc85c",
    ARCHIVE: "52808999861908f626f3c1f4e79d11fa",
}

_SPLIT_KEYS: dict[str, SplitName] = {"trnid": "train", "valid": "valid", "tstid": "test"}
_IMAGE_NAME = re.compile(r"(?:.*/)?image_(\d{5})\.jpg")


class Flowers102:
    """The dataset's own three files, as they are; images are read from the archive without unpacking it."""

    is_immutable = True

    def fetch(self, params: DownloadParams, folder: Path, previous: Path) -> None:
        missing = {}
        for name, md5 in expected_md5(params).items():
            kept = previous / name
            if kept.is_file() and file_digest(kept) == md5:
                shutil.copyfile(kept, folder / name)
            else:
                missing[name] = md5
        source = params.source or OFFICIAL_ADDRESS
        if missing and source.startswith(("http://", "https://")):
            _download(source, missing, folder)
        elif missing:
            _copy(Path(source).expanduser(), missing, folder)

    def count(self, folder: Path) -> int:
        return len(_matrix(folder / LABELS, "labels"))

    def images(self, folder: Path) -> Iterator[SourceImage]:
        labels = _matrix(folder / LABELS, "labels")
        split_of = {
            int(number): split for key, split in _SPLIT_KEYS.items() for number in _matrix(folder / SPLITS, key)
        }
        for number, content in _archived_images(folder / ARCHIVE):
            name = f"image_{number:05d}.jpg"
            if number not in split_of:
                raise DatasetError(f"{folder / ARCHIVE} holds {name}, of which {LABELS} and {SPLITS} know nothing")
            label = int(labels[number - 1])
            yield SourceImage(number, name, content, label, FLOWERS102_CLASSES[label - 1], split_of[number])


def expected_md5(params: DownloadParams) -> dict[str, str]:
    """The md5 that each of the three files must have."""
    return OFFICIAL_MD5 | ({ARCHIVE: params.archive_md5} if params.archive_md5 is not None else {})


def _copy(source: Path, wanted: dict[str, str], folder: Path) -> None:
    if not source.is_dir():
        raise DatasetError(
            f"download.source must be a directory that holds {ARCHIVE}, {LABELS} and {SPLITS}, or an http(s) address "
            f"of them, got {source}, which is neither"
        )
    for name, md5 in wanted.items():
        path = source / name
        if not path.is_file():
            raise DatasetError(f"{path} is missing; download.source must hold {ARCHIVE}, {LABELS} and {SPLITS}")
        found = file_digest(path)
        if found != md5:
            raise DatasetError(_wrong_bytes(str(path), md5, found))
        shutil.copyfile(path, folder / name)


def _download(source: str, wanted: dict[str, str], folder: Path) -> None:
    arrived = {}
    for name, md5 in wanted.items():
        address = f"{source.rstrip('/')}/{name}"
        try:
            arrived[name] = fetch_verified(address, md5, DOWNLOADS)
        except WrongDigestError as error:
            raise DatasetError(_wrong_bytes(address, md5, error.found)) from error
        except TransferError as error:
            raise DatasetError(
                f"{error}. What has arrived stays in {DOWNLOADS}: run it again to go on, or set download.source to a "
                "mirror's address or to a directory that holds the files"
            ) from error
    # Not before all are there: what lies in DOWNLOADS survives a failure.
    for name, path in arrived.items():
        shutil.move(path, folder / name)
    shutil.rmtree(DOWNLOADS)


def _wrong_bytes(place: str, md5: str, found: str) -> str:
    message = f"{place} is not the expected file: its md5 should be {md5}, got {found}"
    if not place.endswith(ARCHIVE):  # whose numbers mean nothing with other labels and splits
        return f"{message}. Only the archive may have other bytes"
    return (
        f"{message}. If other bytes are meant, as with a mirror of resized copies, state their md5 as "
        "download.archive_md5"
    )


def _archived_images(archive: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with tarfile.open(archive, mode="r|gz") as stream:
            for member in stream:
                match = _IMAGE_NAME.fullmatch(member.name)
                file = stream.extractfile(member) if match else None
                if match and file:
                    yield int(match.group(1)), file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DatasetError(f"{archive} cannot be read: {error}") from error


def _matrix(path: Path, key: str) -> Any:
    from scipy.io import loadmat

    return loadmat(path)[key].ravel()
