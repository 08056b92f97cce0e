"""Oxford Flowers 102 (Nilsback & Zisserman 2008): 8,189 photographs, 102 classes, official splits."""

import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddpm.files import file_digest
from stages.datasets.source import DatasetError, SourceImage, SplitName
from stages.sections import DownloadParams

OFFICIAL_ADDRESS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
ARCHIVE, LABELS, SPLITS = "102flowers.tgz", "imagelabels.mat", "setid.mat"
OFFICIAL_MD5 = {
    ARCHIVE: "52808999861908f626f3c1f4e79d11fa",
    LABELS: "e0620be6f572b9609742df49c70aed4d",
    SPLITS: "a5357ecc9cb78c4bef273ce3793fc85c",
}
TIMEOUT_SECONDS = 30
RETRIES = 2

_SPLIT_KEYS: dict[str, SplitName] = {"trnid": "train", "valid": "valid", "tstid": "test"}
_IMAGE_NAME = re.compile(r"(?:.*/)?image_(\d{5})\.jpg")


class Flowers102:
    """The dataset's own three files, as they are; images are read from the archive without unpacking it."""

    is_immutable = True

    def fetch(self, params: DownloadParams, folder: Path, previous: Path) -> None:
        for name, md5 in expected_md5(params).items():
            kept = previous / name
            if kept.is_file() and file_digest(kept) == md5:
                shutil.copyfile(kept, folder / name)
            elif params.source is None or params.source.startswith(("http://", "https://")):
                _download((params.source or OFFICIAL_ADDRESS).rstrip("/") + f"/{name}", md5, folder / name)
            else:
                _copy(Path(params.source).expanduser() / name, md5, folder / name)

    def count(self, folder: Path) -> int:
        return len(_matrix(folder / LABELS, "labels"))

    def images(self, folder: Path) -> Iterator[SourceImage]:
        from torchvision.datasets import Flowers102 as Torchvision

        class_names: list[str] = Torchvision.classes
        labels = _matrix(folder / LABELS, "labels")
        split_of = {
            int(number): split for key, split in _SPLIT_KEYS.items() for number in _matrix(folder / SPLITS, key)
        }
        for number, content in _archived_images(folder / ARCHIVE):
            label = int(labels[number - 1])
            name = f"image_{number:05d}.jpg"
            yield SourceImage(number, name, content, label, class_names[label - 1], split_of[number])


def expected_md5(params: DownloadParams) -> dict[str, str]:
    """The md5 that each of the three files must have."""
    return OFFICIAL_MD5 | ({ARCHIVE: params.archive_md5} if params.archive_md5 is not None else {})


def _copy(source: Path, md5: str, destination: Path) -> None:
    if not source.is_file():
        raise DatasetError(f"{source} is missing; download.source must hold {ARCHIVE}, {LABELS} and {SPLITS}")
    found = file_digest(source)
    if found != md5:
        raise DatasetError(_wrong_bytes(str(source), md5, found))
    shutil.copyfile(source, destination)


def _download(address: str, md5: str, destination: Path) -> None:
    import pooch
    import requests

    downloader = pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS, progressbar=True)
    fetcher = pooch.create(
        path=destination.parent,
        base_url=address.rsplit("/", 1)[0] + "/",
        registry={destination.name: f"md5:{md5}"},
        retry_if_failed=RETRIES,
    )
    try:
        fetcher.fetch(destination.name, downloader=downloader)
    except requests.RequestException as error:
        raise DatasetError(
            f"{address} cannot be downloaded: {error}. Try again later, or set download.source to a mirror's address "
            "or to a directory that holds the files"
        ) from error
    except ValueError as error:  # pooch's word for bytes with another digest
        raise DatasetError(_wrong_bytes(address, md5, str(error))) from error


def _wrong_bytes(place: str, md5: str, found: str) -> str:
    return (
        f"{place} is not the expected file: its md5 should be {md5}, got {found}. "
        "If other bytes are meant, as with a mirror of resized copies, state their md5 as download.archive_md5"
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
