"""The raw data: verified, put into place whole, pinned for DVC, and named by a receipt."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from contract.errors import StageError
from contract.sections import as_plain
from stages import download as module
from stages.datasets import DATASETS, DatasetError
from stages.download import download, folder_digest, inventory, record_pin

DATA, PIN, RECEIPT = Path("data"), Path("data.dvc"), Path("build/download.json")


@pytest.fixture
def repository(folder):
    """An empty repository with DVC in it."""
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["dvc", "init", "--quiet"], check=True)
    return folder


@pytest.fixture
def pinned_by_hand(folder, monkeypatch):
    """A folder in which the pin is written as DVC would, without its second for each."""

    def record(wanted):
        pin = {"outs": [{"md5": folder_digest(inventory(DATA)), "hash": "md5", "path": "data"}]}
        YAML().dump(pin | {"meta": {"download": as_plain(wanted)}}, PIN)

    monkeypatch.setattr(module, "record_pin", record)


def read_yaml(path):
    return YAML(typ="safe").load(path)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def everything():
    return contents(Path())


def photographs(root, *names):
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (index, 0, 0)).save(path)


def test_the_receipt_names_every_file(pinned_by_hand, make_params):
    download(make_params())
    receipt = json.loads(RECEIPT.read_text())
    assert receipt["dataset"] == "synthetic_flowers"
    assert receipt["files"] == [
        {"path": name, "size": len(content), "md5": hashlib.md5(content).hexdigest()}
        for name, content in sorted(contents(DATA).items())
    ]
    assert [file["path"] for file in receipt["files"]] == ["images.npy", "petals.npy"]
    assert receipt["digest"] == read_yaml(PIN)["outs"][0]["md5"]


def test_the_receipt_does_not_depend_on_when_or_where(pinned_by_hand, make_params):
    # DVC compares it: the same data must give the same bytes.
    download(make_params())
    first = RECEIPT.read_bytes()
    download(make_params())
    assert RECEIPT.read_bytes() == first
    assert str(Path.cwd()).encode() not in first


def test_dvc_pins_the_data_by_the_digest_of_the_receipt(repository, make_params, capsys):
    # Names whose order differs between strings and paths, and beyond ASCII.
    names = ["a/z.png", "a-b/y.png", "a.png", "é/ü.png", "Ω.png", "Z.png", "a b/x.png"]
    photographs(Path("photographs"), *names)
    params = make_params({"download.dataset": "folder", "download.source": "photographs"})
    download(params)
    pin = read_yaml(PIN)
    assert pin["outs"][0]["path"] == "data" and pin["outs"][0]["nfiles"] == len(names)
    assert pin["outs"][0]["md5"] == json.loads(RECEIPT.read_text())["digest"] == folder_digest(inventory(DATA))
    assert pin["meta"]["download"] == params.section("download")

    # A second run verifies, and pins the same.
    before = PIN.read_bytes(), contents(DATA), RECEIPT.read_bytes()
    capsys.readouterr()
    download(params)
    assert (PIN.read_bytes(), contents(DATA), RECEIPT.read_bytes()) == before
    assert "has changed" not in capsys.readouterr().out


def test_a_failure_of_dvc_is_an_error_with_its_words(folder, make_params):
    # No repository here.
    DATA.mkdir()
    with pytest.raises(StageError, match=r"`dvc add data` failed: ERROR: you are not inside of a DVC repository"):
        record_pin(make_params().download)


def test_other_bytes_for_the_same_parameters_are_refused(pinned_by_hand, make_params):
    params = make_params()
    download(params)
    pin = read_yaml(PIN)
    fetched = pin["outs"][0]["md5"]
    pin["outs"][0]["md5"] = "0" * 32 + ".dir"
    YAML().dump(pin, PIN)
    (DATA / "petals.npy").write_bytes(b"what stood here before")
    before = everything()
    message = f"differs from the bytes that data.dvc pins for the same parameters: {fetched} instead of {'0' * 32}.dir"
    with pytest.raises(StageError, match=message) as caught:
        download(params)
    assert "delete data.dvc and run again" in str(caught.value)
    assert everything() == before

    PIN.unlink()
    download(params)
    assert read_yaml(PIN)["outs"][0]["md5"] == fetched


def test_damaged_data_is_put_right_again(pinned_by_hand, make_params):
    download(make_params())
    before = everything()
    (DATA / "petals.npy").write_bytes(b"damaged")
    (DATA / "stray.txt").write_text("left by somebody")
    download(make_params())
    assert everything() == before


def test_other_parameters_pin_other_data(pinned_by_hand, make_params):
    download(make_params())
    first, data = read_yaml(PIN), contents(DATA)
    params = make_params({"download.synthetic.seed": 1})
    download(params)
    second = read_yaml(PIN)
    assert second["outs"][0]["md5"] != first["outs"][0]["md5"] and contents(DATA) != data
    assert second["meta"]["download"]["synthetic"]["seed"] == 1


def test_a_pin_without_parameters_is_replaced(pinned_by_hand, make_params):
    # As `dvc add data` by hand leaves it.
    YAML().dump({"outs": [{"md5": "0" * 32 + ".dir", "path": "data"}]}, PIN)
    download(make_params())
    assert read_yaml(PIN)["meta"]["download"]["dataset"] == "synthetic_flowers"


def test_a_source_of_ones_own_may_change_with_a_notice(pinned_by_hand, make_params, capsys):
    photographs(Path("photographs"), "rose/a.png", "rose/b.png")
    params = make_params({"download.dataset": "folder", "download.source": "photographs"})
    download(params)
    first = read_yaml(PIN)["outs"][0]["md5"]
    photographs(Path("photographs"), "tulip/c.png")
    Path("photographs/rose/a.png").unlink()
    capsys.readouterr()
    download(params)
    second = read_yaml(PIN)["outs"][0]["md5"]
    assert second != first
    assert f"the source has changed since it was pinned; data.dvc now pins {second}" in capsys.readouterr().out
    # What the source no longer holds is gone.
    assert sorted(contents(DATA)) == ["rose/b.png", "tulip/c.png"]


@pytest.mark.parametrize("error", [DatasetError("no network"), KeyboardInterrupt()])
def test_a_failure_midway_leaves_all_as_it_was(pinned_by_hand, make_params, monkeypatch, error):
    download(make_params())
    before = everything()

    def breaks_off(params, folder, previous):
        (folder / "images.npy").write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(DATASETS["synthetic_flowers"], "fetch", breaks_off)
    with pytest.raises(type(error)):
        download(make_params({"download.synthetic.seed": 1}))
    assert everything() == before
    assert not Path(".data.incoming").exists() and not Path(".data.outgoing").exists()


def test_what_an_ended_run_left_is_not_taken_for_data(pinned_by_hand, make_params):
    for name in (".data.incoming", ".data.outgoing"):
        Path(name).mkdir()
        Path(name, "stray.txt").write_text("left by a run that was killed")
    download(make_params())
    assert sorted(contents(DATA)) == ["images.npy", "petals.npy"]
    assert not Path(".data.incoming").exists() and not Path(".data.outgoing").exists()


def test_the_data_in_place_is_offered_to_the_dataset(pinned_by_hand, make_params, monkeypatch):
    # So that verified files need not be fetched again.
    offered = []
    fetch = DATASETS["synthetic_flowers"].fetch

    def watched(params, folder, previous):
        offered.append((folder.name, previous))
        fetch(params, folder, previous)

    monkeypatch.setattr(DATASETS["synthetic_flowers"], "fetch", watched)
    download(make_params())
    assert offered == [(".data.incoming", DATA)]


def test_drawn_and_published_data_may_never_change_and_ones_own_may():
    immutable = {name for name, dataset in DATASETS.items() if dataset.is_immutable}
    assert immutable == {"synthetic_flowers", "flowers102"}
