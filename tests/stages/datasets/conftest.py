"""Six photographs in the layout of Oxford Flowers 102, and servers to download them from."""

import io
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from stages.datasets import DATASETS, flowers102, transfer
from tests.stages.datasets.files import encode, md5
from tests.stages.datasets.servers import serve_folder

# Not in the order of their numbers, as in the official archive.
ARCHIVED = (3, 1, 6, 2, 5, 4)


@pytest.fixture
def fetch(folder, tmp_path_factory, make_params):
    """Fetches a dataset into a new folder."""

    def fetch(dataset, changes=None):
        target = tmp_path_factory.mktemp("incoming")
        params = make_params({"download.dataset": dataset} | (changes or {}))
        DATASETS[dataset].fetch(params.download, target, previous=folder / "data")
        return target

    return fetch


def make_archive(numbers, salt=""):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        directory = tarfile.TarInfo("jpg")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        files = {"jpg/about.txt": salt.encode()}
        for number in numbers:
            photograph = Image.new("RGB", (10 + number, 12), (40 * number, 0, 0))
            files[f"jpg/image_{number:05d}.jpg"] = encode(photograph, "JPEG")
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """A folder with the three files of a dataset of six photographs, whose digests are taken for the official ones.

    Numbers 1 and 4 are of split train, 2 of valid, 3, 5 and 6 of test; the labels are 1, 77, 102, 2, 1, 51.
    """
    root = tmp_path / "mirror"
    root.mkdir(exist_ok=True)
    (root / flowers102.ARCHIVE).write_bytes(make_archive(ARCHIVED))
    savemat(root / flowers102.LABELS, {"labels": np.array([[1, 77, 102, 2, 1, 51]], dtype=np.uint8)})
    splits = {"trnid": [[4, 1]], "valid": [[2]], "tstid": [[3, 6, 5]]}
    savemat(root / flowers102.SPLITS, {name: np.array(ids, dtype=np.uint16) for name, ids in splits.items()})
    official = {name: md5((root / name).read_bytes()) for name in flowers102.OFFICIAL_MD5}
    monkeypatch.setattr(flowers102, "OFFICIAL_MD5", official)
    return root


@pytest.fixture
def other_archive(flowers):
    """Puts another archive into that folder and returns its digest."""

    def put(numbers=ARCHIVED):
        content = make_archive(numbers, salt="resized copies")
        (flowers / flowers102.ARCHIVE).write_bytes(content)
        return md5(content)

    return put


@pytest.fixture
def own_network(monkeypatch):
    """Neither proxies nor certificates of the caller."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle", "curl_ca_bundle"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def mirror(tmp_path, own_network):
    """A web server of the folder `flowers`."""
    root = tmp_path / "mirror"
    root.mkdir(exist_ok=True)
    with serve_folder(root) as server:
        yield server


@pytest.fixture
def waits(monkeypatch):
    """Waits between attempts, which are noted instead of waited."""
    noted = []
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=noted.append))
    return noted
