"""Fetch the raw dataset into data/, verify it, pin it in data.dvc, and write a receipt.

Later stages depend on the receipt: DVC refuses a fresh clone in which a stage depends on data.dvc while no cache holds
its bytes.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from contract.errors import StageError
from contract.params import Params
from contract.paths import DATA, DATA_PIN, RECEIPT
from contract.sections import DownloadParams, as_plain
from ddpm.files import atomic_path, file_digest
from stages.datasets import DATASETS
from stages.runtime.runner import run_stage

_OUTGOING = DATA.with_name(".data.outgoing")


def download(params: Params) -> None:
    """data/, data.dvc and the receipt."""
    wanted = params.download
    recover()
    incoming = DATA.with_name(".data.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    try:
        print(f"download: fetching {wanted.dataset}", flush=True)
        DATASETS[wanted.dataset].fetch(wanted, incoming, previous=DATA)
        files = inventory(incoming)
        verify_against_pin(wanted, files)
        # From here until it is written anew, no receipt speaks of bytes that are gone.
        RECEIPT.unlink(missing_ok=True)
        install(incoming)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    record_pin(wanted)
    write_receipt(wanted, files)
    size_mb = sum(file["size"] for file in files) / 1e6
    print(f"download: {wanted.dataset} verified, {len(files)} files, {size_mb:.1f} MB", flush=True)


def inventory(folder: Path) -> list[dict[str, Any]]:
    """Name, size and md5 of every file below `folder`, in the order of their names."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "md5": file_digest(path)}
        for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix())
    ]


def folder_digest(files: list[dict[str, Any]]) -> str:
    """The digest that DVC gives to a directory of these files, as it stands in data.dvc.

    The md5 of the JSON list of {md5, relpath}, and ".dir".
    """
    entries = [{"md5": file["md5"], "relpath": file["path"]} for file in files]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def verify_against_pin(wanted: DownloadParams, files: list[dict[str, Any]]) -> None:
    """Compare what was fetched with data.dvc, where that was made with the same parameters.

    Raises:
        StageError: the same parameters gave other bytes.
    """
    pin = read_pin()
    if pin is None or pin.get("meta", {}).get("download") != as_plain(wanted):
        return
    pinned, found = pin["outs"][0]["md5"], folder_digest(files)
    if pinned == found:
        return
    if DATASETS[wanted.dataset].is_immutable:
        raise StageError(
            f"the fetched {wanted.dataset} differs from the bytes that {DATA_PIN} pins for the same parameters: "
            f"{found} instead of {pinned}. If the new bytes are meant, delete {DATA_PIN} and run again"
        )
    print(f"download: warning: the source has changed since it was pinned; {DATA_PIN} now pins {found}", flush=True)


def install(incoming: Path) -> None:
    """Put the verified folder in the place of data/, which is never half of one and half of the other."""
    if DATA.exists():
        DATA.rename(_OUTGOING)
    incoming.rename(DATA)
    shutil.rmtree(_OUTGOING, ignore_errors=True)


def recover() -> None:
    """Undo an `install` that was cut between its two renames."""
    if _OUTGOING.exists() and not DATA.exists():
        _OUTGOING.rename(DATA)
    shutil.rmtree(_OUTGOING, ignore_errors=True)


def record_pin(wanted: DownloadParams) -> None:
    """Let DVC pin data/ in data.dvc, with the parameters that it was made with."""
    command = [sys.executable, "-m", "dvc", "add", str(DATA)]  # --quiet would hide its errors
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise StageError(f"`dvc add {DATA}` failed: {result.stderr.strip() or result.stdout.strip()}")
    pin = read_pin()
    assert pin is not None
    pin["meta"] = {"download": as_plain(wanted)}
    with atomic_path(DATA_PIN) as temporary:
        YAML().dump(pin, temporary)


def read_pin() -> dict[str, Any] | None:
    """The content of data.dvc, or None where there is none."""
    if not DATA_PIN.is_file():
        return None
    pin: dict[str, Any] = YAML(typ="safe").load(DATA_PIN)
    return pin


def write_receipt(wanted: DownloadParams, files: list[dict[str, Any]]) -> None:
    """What the later stages depend on: which dataset, and the digest of each file."""
    receipt = {"dataset": wanted.dataset, "digest": folder_digest(files), "files": files}
    with atomic_path(RECEIPT) as temporary:
        temporary.write_text(json.dumps(receipt, indent=1) + "\n")


if __name__ == "__main__":
    run_stage("download", download)
