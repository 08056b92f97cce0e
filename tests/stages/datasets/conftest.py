"""A few photographs in the layout of Oxford Flowers 102."""

import hashlib
import io
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from stages.datasets import flowers102, transfer
from tests.stages.datasets.servers import Mirror, Proxy, serving

# Not in the order of their numbers, as in the official archive.
ARCHIVED = (3, 1, 6, 2, 5, 4)


def jpeg(number):
    buffer = io.BytesIO()
    Image.new("RGB", (10 + number, 12), (40 * number, 0, 0)).save(buffer, format="JPEG")
    return buffer.getvalue()


def md5(content):
    return hashlib.md5(content).hexdigest()


def archive_bytes(numbers, salt=""):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        directory = tarfile.TarInfo("jpg")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        images = {f"jpg/image_{number:05d}.jpg": jpeg(number) for number in numbers}
        for name, content in {"jpg/about.txt": salt.encode(), **images}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """A directory with the three files of a dataset of six photographs, whose digests are taken for the official ones.

    Numbers 1 and 4 are of split train, 2 of valid, 3, 5 and 6 of test; the labels are 1, 77, 102, 2, 1, 51.
    """
    root = tmp_path / "mirror"
    root.mkdir(exist_ok=True)
    (root / flowers102.ARCHIVE).write_bytes(archive_bytes(ARCHIVED))
    savemat(root / flowers102.LABELS, {"labels": np.array([[1, 77, 102, 2, 1, 51]], dtype=np.uint8)})
    splits = {"trnid": [[4, 1]], "valid": [[2]], "tstid": [[3, 6, 5]]}
    savemat(root / flowers102.SPLITS, {name: np.array(ids, dtype=np.uint16) for name, ids in splits.items()})
    official = {path.name: md5(path.read_bytes()) for path in root.iterdir()}
    monkeypatch.setattr(flowers102, "OFFICIAL_MD5", {name: official[name] for name in flowers102.OFFICIAL_MD5})
    return root


@pytest.fixture
def other_archive(flowers):
    """Puts another archive of the same photographs into the mirror, and gives its digest."""

    def put(salt="resized copies", numbers=ARCHIVED):
        content = archive_bytes(numbers, salt)
        (flowers / flowers102.ARCHIVE).write_bytes(content)
        return md5(content)

    return put


@pytest.fixture
def own_network(monkeypatch):
    """No proxy and no certificates of the caller's."""
    names = ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle", "curl_ca_bundle"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def mirror(tmp_path, own_network):
    """A web server of the directory that `flowers` makes, if it does."""
    root = tmp_path / "mirror"
    root.mkdir(exist_ok=True)
    with serving(Mirror(root)) as server:
        yield server
        server.end_of_silence.set()


@pytest.fixture
def proxy(own_network):
    """A proxy on the way."""
    with serving(Proxy()) as server:
        yield server


@pytest.fixture
def waits(monkeypatch):
    """The waits between attempts, which are noted and not waited."""
    noted = []
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=noted.append))
    return noted
