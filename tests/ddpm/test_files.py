"""Files that are either whole or absent."""

import errno
import hashlib
import os
import resource
import stat

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ddpm.files import atomic_path, file_digest

ARRAY = np.zeros(2**15, np.uint8)
WRITERS = {
    "text": lambda path: path.write_text("x" * len(ARRAY)),
    "numpy": lambda path: np.save(path, ARRAY),
    "safetensors": lambda path: save_file({"a": torch.from_numpy(ARRAY)}, path),
}


@pytest.mark.parametrize("old", [None, "old"])
def test_the_file_appears_when_the_block_ends(tmp_path, old):
    path = tmp_path / "new" / "folder" / "table.csv"
    if old:
        path.parent.mkdir(parents=True)
        path.write_text(old)
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert path.read_text() == old if old else not path.exists()
        # Beside the file, so that taking its name is a rename; with its suffix, since some writers go by it.
        assert temporary.parent == path.parent
        assert temporary.suffix == ".csv"
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def write_half(path):
    path.write_text("ha")
    raise KeyboardInterrupt


@pytest.mark.parametrize(("write", "error"), [(write_half, KeyboardInterrupt), (lambda _: None, FileNotFoundError)])
def test_a_failed_or_missing_write_leaves_the_old_file_and_nothing_else(tmp_path, write, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        write(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def full_disk():
    """Lets no file grow beyond 16 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITERS)
def test_where_there_is_no_room_the_error_names_the_file(tmp_path, full_disk, name):
    path = tmp_path / "file.npy"
    with pytest.raises(OSError) as caught, atomic_path(path) as temporary:
        WRITERS[name](temporary)
    assert caught.value.filename == str(path) and caught.value.strerror
    assert caught.value.errno in (errno.EFBIG, None)  # numpy gives no number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file/x", "folder"])
def test_where_no_file_can_be_the_error_names_it(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught, atomic_path(tmp_path / name) as temporary:
        temporary.touch()
    assert caught.value.filename in {str(tmp_path / "file"), str(tmp_path / "folder")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_has_the_mode_of_any_new_one(tmp_path, name, umask, mode):
    path = tmp_path / "file.npy"
    path.touch(0o600)
    before = os.umask(umask)
    try:
        with atomic_path(path) as temporary:
            WRITERS[name](temporary)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_digest_is_that_of_the_bytes(tmp_path, algorithm):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 5000)
    assert file_digest(path, algorithm) == hashlib.new(algorithm, path.read_bytes()).hexdigest()
