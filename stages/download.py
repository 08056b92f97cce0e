"""Download the raw dataset into data/, verify it, pin it in data.dvc and write a receipt.

Later stages depend on the receipt: DVC refuses a fresh clone in which a stage depends on data.dvc while no cache holds
its bytes.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.params import Params
from contract.paths import DATA, RECEIPT
from stages.datasets import DATASETS
from stages.datasets.pin import compare_with_pin, list_files, write_pin, write_receipt
from stages.runtime.reporting import say
from stages.runtime.runner import run_stage


def download(params: Params) -> None:
    """Write data/, data.dvc and the receipt."""
    section = params.download
    dataset = DATASETS[section.dataset]
    say("download", f"fetching {section.dataset}")
    with replace_folder(DATA) as incoming:
        dataset.fetch(section, incoming, previous=DATA)
        files = list_files(incoming)
        compare_with_pin(section, files, is_immutable=dataset.is_immutable)
        # Until the new receipt is written there is none, so that no receipt names bytes that are gone.
        RECEIPT.unlink(missing_ok=True)
    write_pin(section)
    write_receipt(section.dataset, files)
    size_mb = sum(file["size"] for file in files) / 1e6
    say("download", f"{section.dataset} verified, {len(files)} files, {size_mb:.1f} MB")


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, which takes the place of `folder` when the block ends without an error.

    `folder` is never a mixture of both. If the program is killed between the two renames, the next call undoes the
    first one.
    """
    incoming, outgoing = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("incoming", "outgoing"))
    if outgoing.exists() and not folder.exists():
        outgoing.rename(folder)
    shutil.rmtree(outgoing, ignore_errors=True)
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    try:
        yield incoming
        if folder.exists():
            folder.rename(outgoing)
        incoming.rename(folder)
        shutil.rmtree(outgoing, ignore_errors=True)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


if __name__ == "__main__":
    run_stage("download", download)
