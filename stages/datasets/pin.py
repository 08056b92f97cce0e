"""Record which bytes were downloaded: data.dvc pins them for DVC, a receipt names them for the later stages."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from ruamel.yaml import YAML

from contract.documents import read_mapping
from contract.errors import StageError
from contract.paths import DATA, DATA_PIN, RECEIPT
from contract.sections import DownloadParams, as_plain
from ddpm.files import atomic_path, file_digest
from stages.datasets.source import list_visible_files
from stages.runtime.outputs import write_json
from stages.runtime.reporting import warn

_NUM_NAMES_SHOWN = 3


class FileRecord(TypedDict):
    """One file of a folder."""

    path: str
    """relative to the folder"""
    size: int
    md5: str


class Receipt(TypedDict):
    """Content of the receipt."""

    dataset: str
    digest: str
    """as in data.dvc"""
    files: list[FileRecord]


def list_files(folder: Path) -> list[FileRecord]:
    """Return a record of every file below `folder`, sorted by path."""
    files: list[FileRecord] = [
        {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "md5": file_digest(path)}
        for path in folder.rglob("*")
        if path.is_file()
    ]
    return sorted(files, key=lambda file: file["path"])


def digest_folder(files: Sequence[FileRecord]) -> str:
    """Return the digest that DVC gives to a folder of these files: the md5 of a JSON list, with the suffix ".dir"."""
    entries = [{"md5": file["md5"], "relpath": file["path"]} for file in sorted(files, key=lambda file: file["path"])]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def compare_with_pin(params: DownloadParams, files: Sequence[FileRecord], *, is_immutable: bool) -> None:
    """Compare new files with data.dvc, if data.dvc was made with the same parameters; warn where they differ.

    Raises:
        StageError: the bytes of an immutable dataset differ.
    """
    pin = _read_pin()
    if pin.get("meta", {}).get("download") != as_plain(params):
        return
    pinned, found = pin["outs"][0]["md5"], digest_folder(files)
    if pinned == found:
        return
    if is_immutable:
        raise StageError(
            f"the downloaded {params.dataset} differs from the bytes that {DATA_PIN} pins for the same parameters: got "
            f"{found}, expected {pinned}. If the new bytes are correct, delete {DATA_PIN} and run again"
        )
    warn("download", f"the source has changed since it was pinned; {DATA_PIN} now pins {found}")


def write_pin(params: DownloadParams) -> None:
    """Let DVC pin data/ in data.dvc, and note there the parameters of the download.

    Raises:
        StageError: DVC failed.
    """
    command = [sys.executable, "-m", "dvc", "add", str(DATA)]  # --quiet would hide its errors
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise StageError(f"`dvc add {DATA}` failed: {result.stderr.strip() or result.stdout.strip()}")
    pin = _read_pin() | {"meta": {"download": as_plain(params)}}
    with atomic_path(DATA_PIN) as temporary:
        YAML().dump(pin, temporary)


def write_receipt(dataset: str, files: list[FileRecord]) -> None:
    """Write the receipt, which is the same whenever the files are."""
    receipt: Receipt = {"dataset": dataset, "digest": digest_folder(files), "files": files}
    write_json(RECEIPT, receipt)


def read_receipt() -> Receipt:
    """Return the receipt after comparing data/ with it.

    Raises:
        StageError: a file of data/ is missing, has other bytes, or was not downloaded.
    """
    receipt: Receipt = json.loads(RECEIPT.read_text())
    known = {DATA / file["path"] for file in receipt["files"]}
    # No dataset reads hidden files, such as those of a desktop.
    if unknown := [path.relative_to(DATA).as_posix() for path in list_visible_files(DATA) if path not in known]:
        more = f" and {len(unknown) - _NUM_NAMES_SHOWN} more" if len(unknown) > _NUM_NAMES_SHOWN else ""
        raise StageError(
            f"{DATA} holds files that were not downloaded: {', '.join(unknown[:_NUM_NAMES_SHOWN])}{more}. Move them "
            "away (into the folder of download.source, to use them), then run `dvc repro --force download`"
        )
    for file in receipt["files"]:
        path = DATA / file["path"]
        if not path.is_file() or file_digest(path) != file["md5"]:
            problem = "has other bytes than the downloaded file" if path.is_file() else "is missing"
            raise StageError(f"{path} {problem}; run `dvc repro --force download` to restore it")
    return receipt


def _read_pin() -> dict[str, Any]:
    return read_mapping(DATA_PIN) if DATA_PIN.is_file() else {}
