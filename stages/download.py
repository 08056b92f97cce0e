"""Download the raw dataset into data/, verify it, pin it in data.dvc and write a receipt.

Later stages depend on the receipt: DVC refuses a fresh clone in which a stage depends on data.dvc while no cache holds
its bytes.
"""

from contract.params import Params
from contract.paths import DATA, DOWNLOADS
from stages.datasets import DATASETS
from stages.datasets.pin import compare_with_pin, list_files, make_receipt, read_pin, write_pin
from stages.datasets.replacement import receive_data
from stages.datasets.transfer import remove_parts
from stages.runtime.reporting import say
from stages.runtime.runner import run_stage


def download(params: Params) -> None:
    """Write data/, data.dvc and the receipt: all three, or none.

    Raises:
        StageError: the bytes are not available, not the expected ones, or cannot take the place of the former ones.
    """
    section = params.download
    dataset = DATASETS[section.dataset]
    say("download", f"fetching {section.dataset}")
    with receive_data(section.source) as data:
        pin = read_pin()
        dataset.fetch(section, data.incoming, previous=DATA)
        files = list_files(data.incoming)
        compare_with_pin(pin, section, files, is_immutable=dataset.is_immutable)
        with data.exchange(make_receipt(section.dataset, files)):
            write_pin(section, files)
    remove_parts(DOWNLOADS)
    size_mb = sum(file["size"] for file in files) / 1e6
    say("download", f"{section.dataset} verified, {len(files)} files, {size_mb:.1f} MB")


if __name__ == "__main__":
    run_stage("download", download)
