"""Oxford Flowers 102 (Nilsback & Zisserman 2008): 8,189 photographs, 102 classes, official splits."""

import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract.class_names import FLOWERS102_CLASSES
from contract.errors import StageError
from contract.paths import DOWNLOADS
from contract.sections import DownloadParams
from ddpm.files import file_digest
from stages.datasets.source import SourceImage, SplitName
from stages.datasets.transfer import TransferError, WrongDigestError, fetch_verified
from stages.datasets.walking import find_source

OFFICIAL_ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
ARCHIVE, LABELS, SPLITS = "102flowers.tgz", "imagelabels.mat", "setid.mat"
OFFICIAL_MD5 = {  # downloaded in this order: the two small files show early that an address is wrong
    LABELS: "e0620be6f572b9609742df49c70aed4d",
    SPLITS: "a5357ecc9cb78c4bef273ce3793fc85c",
    ARCHIVE: "52808999861908f626f3c1f4e79d11fa",
}

_SPLIT_KEYS: dict[str, SplitName] = {"trnid": "train", "valid": "valid", "tstid": "test"}
_IMAGE_NAME = re.compile(r"(?:.*/)?image_(\d{5})\.jpg")


class Flowers102:
    """The three published files, unchanged; images are read from the archive without unpacking it."""

    is_immutable = True

    def fetch(self, params: DownloadParams, folder: Path, previous: Path) -> None:
        missing = OFFICIAL_MD5 | ({ARCHIVE: params.archive_md5} if params.archive_md5 else {})
        for name, md5 in list(missing.items()):
            kept = previous / name
            if kept.is_file() and file_digest(kept) == md5:
                shutil.copyfile(kept, folder / name)
                del missing[name]
        source = find_source(params.source)
        if missing and source:
            _copy(source, missing, folder)
        elif missing:
            _download(params.source or OFFICIAL_ADDRESS, missing, folder)

    def count(self, folder: Path) -> int:
        return len(_read_matrix(folder / LABELS, "labels"))

    def images(self, folder: Path) -> Iterator[SourceImage]:
        labels = _read_matrix(folder / LABELS, "labels")
        split_of = {
            int(number): split for key, split in _SPLIT_KEYS.items() for number in _read_matrix(folder / SPLITS, key)
        }
        for number, content in _read_archive(folder / ARCHIVE):
            name = f"image_{number:05d}.jpg"
            if number not in split_of:
                raise StageError(f"{folder / ARCHIVE} holds {name}, which is not in {LABELS} and {SPLITS}")
            label = int(labels[number - 1])
            yield SourceImage(number, name, content, label, FLOWERS102_CLASSES[label - 1], split_of[number])


def _copy(source: Path, md5_of: dict[str, str], folder: Path) -> None:
    if not source.is_dir():
        raise StageError(
            f"download.source must be a folder that holds {ARCHIVE}, {LABELS} and {SPLITS}, or their http(s) address, "
            f"got {source}"
        )
    for name, md5 in md5_of.items():
        path = source / name
        if not path.is_file():
            raise StageError(f"{path} is missing; download.source must hold {ARCHIVE}, {LABELS} and {SPLITS}")
        if (found := file_digest(path)) != md5:
            raise StageError(_explain_wrong_md5(str(path), md5, found))
        shutil.copyfile(path, folder / name)


def _download(source: str, md5_of: dict[str, str], folder: Path) -> None:
    for name, md5 in md5_of.items():
        address = f"{source.rstrip('/')}/{name}"
        try:
            shutil.copyfile(fetch_verified(address, md5, DOWNLOADS), folder / name)
        except WrongDigestError as error:
            raise StageError(_explain_wrong_md5(address, md5, error.found)) from error
        except TransferError as error:
            raise TransferError(
                f"{error}. The bytes received so far stay in {DOWNLOADS}: run again to resume, or set download.source "
                "to the address of a mirror or to a folder that holds the files",
                is_transient=error.is_transient,
            ) from error


def _explain_wrong_md5(place: str, md5: str, found: str) -> str:
    advice = "Only the archive may have other bytes"  # its image numbers refer to these labels and splits
    if place.endswith(ARCHIVE):
        advice = "To use another archive, such as a mirror's resized copies, set download.archive_md5 to its md5"
    return f"{place} is not the expected file: its md5 should be {md5}, got {found}. {advice}"


def _read_archive(archive: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with tarfile.open(archive, mode="r|gz") as stream:
            for member in stream:
                match = _IMAGE_NAME.fullmatch(member.name)
                file = stream.extractfile(member) if match else None
                if match and file:
                    yield int(match.group(1)), file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise StageError(f"{archive} cannot be read: {error}") from error


def _read_matrix(path: Path, key: str) -> Any:
    from scipy.io import loadmat

    return loadmat(path)[key].ravel()
