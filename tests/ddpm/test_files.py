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


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def interrupted():
        with atomic_path(path) as temporary:
            temporary.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_text() == "old"


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_digest_is_that_of_the_bytes(tmp_path, algorithm):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * 5000)
    assert file_digest(path, algorithm) == hashlib.new(algorithm, path.read_bytes()).hexdigest()
