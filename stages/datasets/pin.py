"""Record which bytes were downloaded: data.dvc pins them for DVC, a receipt names them for the later stages."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

from ruamel.yaml import YAML

from contract.documents import read_mapping
from contract.errors import StageError, name_few
from contract.paths import DATA, DATA_PIN, RECEIPT, STAGED_RECEIPT
from contract.sections import DownloadParams, as_plain
from ddpm.files import atomic_path, file_digest
from stages.datasets.walking import list_visible_entries
from stages.runtime.reporting import warn


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


def read_pin() -> dict[str, Any]:
    """Return what data.dvc holds; nothing where there is none.

    Raises:
        ParamsError: it cannot be read.
    """
    return read_mapping(DATA_PIN) if DATA_PIN.is_file() else {}


def compare_with_pin(
    pin: dict[str, Any], params: DownloadParams, files: Sequence[FileRecord], *, is_immutable: bool
) -> None:
    """Compare new files with what data.dvc pins for the same parameters, if it does; warn where they differ.

    Raises:
        StageError: the bytes of an immutable dataset differ.
    """
    if _pinned_download(pin) != as_plain(params):
        return
    pinned, found = _pinned_out(pin).get("md5"), digest_folder(files)
    if pinned == found:
        return
    if is_immutable:
        raise StageError(
            f"the downloaded {params.dataset} differs from the bytes that {DATA_PIN} pins for the same parameters: got "
            f"{found}, expected {pinned}. If the new bytes are correct, delete {DATA_PIN} and run again"
        )
    warn("download", f"the source has changed since it was pinned; {DATA_PIN} now pins {found}")


def write_pin(params: DownloadParams, files: Sequence[FileRecord]) -> None:
    """Let DVC keep data/, and pin it in data.dvc, with the parameters of the download.

    Raises:
        StageError: DVC failed.
    """
    former = read_pin()
    out = _pinned_out(former) | {
        "md5": digest_folder(files),
        "size": sum(file["size"] for file in files),
        "nfiles": len(files),
        "hash": "md5",
        "path": str(DATA),
    }
    pin = former | {"outs": [out], "meta": {"download": as_plain(params)}}
    _dump_pin(pin)
    _run_dvc("commit", "--force", str(DATA_PIN))  # unlike `dvc add`, it takes a link to a folder on another disk
    if _pinned_out(read_pin())["md5"] != out["md5"]:
        raise StageError(f"DVC leaves out files of {DATA}: see which patterns of .dvcignore match them")
    _dump_pin(pin)  # in our own form, so that the same data give the same bytes


def make_receipt(dataset: str, files: list[FileRecord]) -> Receipt:
    """Return the receipt, which is the same whenever the files are."""
    return {"dataset": dataset, "digest": digest_folder(files), "files": files}


def list_received_files() -> set[tuple[str, str]]:
    """Return path and md5 of each file that downloads here put into data/, by their receipts."""
    known = set()
    for path in (RECEIPT, STAGED_RECEIPT):
        with suppress(StageError):  # without a record, the files are unknown
            known |= {(file["path"], file["md5"]) for file in _read_receipt(path)["files"]}
    return known


def list_pinned_files() -> set[tuple[str, str]]:
    """Return path and md5 of each file that data.dvc pins for a download, as `dvc checkout` puts them into data/.

    They are none where data.dvc cannot be read, or DVC does not know them.
    """
    try:
        if not _pinned_download(read_pin()):
            return set()
        listing = _run_dvc("list", ".", str(DATA), "--recursive", "--dvc-only", "--show-hash", "--json")
    except StageError:
        return set()
    return {(file["path"], file["md5"]) for file in json.loads(listing)}


def read_receipt() -> Receipt:
    """Return the receipt after comparing data/ with it.

    Raises:
        StageError: a file of data/ is missing, has other bytes, or was not downloaded; the last download did not end.
    """
    if STAGED_RECEIPT.exists():
        raise StageError(f"the last download was killed while it replaced {DATA}; run `dvc repro --force download`")
    receipt = _read_receipt(RECEIPT)
    known = {DATA / file["path"] for file in receipt["files"]}
    # No dataset reads hidden files, such as those of a desktop.
    if unknown := [path.relative_to(DATA).as_posix() for path in list_visible_entries(DATA) if path not in known]:
        raise StageError(
            f"{DATA} holds files that were not downloaded: {name_few(unknown)}. Move them away (into the folder of "
            "download.source, to use them), then run `dvc repro --force download`"
        )
    for file in receipt["files"]:
        path = DATA / file["path"]
        if not path.is_file():
            raise StageError(f"{path} is missing; run `dvc repro --force download` to restore it")
        if file_digest(path) != file["md5"]:
            raise StageError(
                f"{path} has other bytes than the downloaded file; move it away, then run `dvc repro --force download` "
                "to restore that"
            )
    return receipt


def _read_receipt(path: Path) -> Receipt:
    try:
        receipt: Receipt = json.loads(path.read_text())
        is_whole = receipt["digest"] == digest_folder(receipt["files"])
    except (OSError, ValueError, TypeError, KeyError):
        is_whole = False
    if not is_whole:
        raise StageError(f"{path} is damaged; run `dvc repro --force download`")
    return receipt


def _pinned_download(pin: dict[str, Any]) -> Any:
    """Return the parameters of the download; None where it was pinned by hand."""
    return (pin.get("meta") or {}).get("download")


def _pinned_out(pin: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of data/; empty without one."""
    out: dict[str, Any] = next(iter(pin.get("outs", [])), {})
    return out


def _dump_pin(pin: dict[str, Any]) -> None:
    with atomic_path(DATA_PIN) as temporary:
        YAML().dump(pin, temporary)


def _run_dvc(*arguments: str) -> str:
    """Return what a DVC command prints.

    Raises:
        StageError: it failed.
    """
    command = ["setpriv", "--pdeathsig", "KILL"]  # or it would go on beside the next download, if this one is killed
    command += [sys.executable, "-m", "dvc", *arguments]  # --quiet would hide its errors
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise StageError(f"`dvc {' '.join(arguments)}` failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout
