"""Files that are either whole or absent."""

import hashlib

import pytest

from ddpm.files import atomic_path, file_digest


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


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_digest_is_that_of_the_bytes(tmp_path, algorithm):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 5000)
    assert file_digest(path, algorithm) == hashlib.new(algorithm, path.read_bytes()).hexdigest()
