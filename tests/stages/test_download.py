"""The raw data: verified, replaced as a whole, pinned for DVC, and named by a receipt."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from contract.errors import StageError
from contract.sections import as_plain
from stages import download as module
from stages.datasets import DATASETS
from stages.datasets.pin import digest_folder, list_files, read_receipt, write_pin
from stages.download import download
from tests.stages.datasets.files import md5, read_files, write_files

DATA, PIN, RECEIPT = Path("data"), Path("data.dvc"), Path("build/download.json")
SYNTHETIC = DATASETS["synthetic_flowers"]


@pytest.fixture
def pin_by_hand(folder, monkeypatch):
    """Writes the pin as DVC would, without the second that DVC takes."""

    def write(params, files):
        assert files == list_files(DATA)
        pin = {"outs": [{"md5": digest_folder(list_files(DATA)), "hash": "md5", "path": "data"}]}
        YAML().dump(pin | {"meta": {"download": as_plain(params)}}, PIN)

    monkeypatch.setattr(module, "write_pin", write)


def read_pin():
    return YAML(typ="safe").load(PIN)


def read_digest():
    return read_pin()["outs"][0]["md5"]


def read_all():
    return read_files(Path())


def read_data_and_pin():
    return {name: content for name, content in read_all().items() if name.startswith("data")}


def test_the_receipt_names_every_file(pin_by_hand, make_params):
    download(make_params())
    before = RECEIPT.read_bytes()
    receipt = json.loads(before)
    assert receipt["dataset"] == "synthetic_flowers" and receipt["digest"] == read_digest()
    assert receipt["files"] == [
        {"path": name, "size": len(content), "md5": md5(content)} for name, content in sorted(read_files(DATA).items())
    ]
    assert [file["path"] for file in receipt["files"]] == ["images.npy", "petals.npy"]
    # DVC compares it: the same data must give the same bytes at any time and place.
    download(make_params())
    assert RECEIPT.read_bytes() == before and str(Path.cwd()).encode() not in before


def test_dvc_pins_the_data_by_the_digest_of_the_receipt(folder, make_params, capsys):
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
    # Names whose order differs between strings and paths, and beyond ASCII.
    names = ["a/z.png", "a-b/y.png", "a.png", "é/ü.png", "Ω.png", "Z.png", "a b/x.png"]
    write_files(Path("photographs"), {name: name.encode() for name in names})
    Path("disk/flowers").mkdir(parents=True)
    DATA.symlink_to("disk/flowers")  # such as a bigger disk
    params = make_params({"download.dataset": "folder", "download.source": "photographs"})
    download(params)
    pin = read_pin()
    assert pin["outs"][0]["path"] == "data" and pin["outs"][0]["nfiles"] == len(names)
    assert read_digest() == json.loads(RECEIPT.read_text())["digest"]
    assert pin["meta"]["download"] == params.section("download")

    # A second run verifies, and pins the same.
    before = PIN.read_bytes(), read_files(DATA), RECEIPT.read_bytes()
    capsys.readouterr()
    download(params)
    assert (PIN.read_bytes(), read_files(DATA), RECEIPT.read_bytes()) == before
    assert "warning" not in capsys.readouterr().out
    assert DATA.readlink() == Path("disk/flowers") and [path.name for path in Path("disk").iterdir()] == ["flowers"]

    # In a clone there is no receipt: what `dvc pull` puts there is known by the pin.
    (DATA / "a.png").write_bytes(b"edited")
    shutil.rmtree("build")
    with pytest.raises(StageError, match=r"did not put there: a\.png \(changed since\)\. They"):
        download(params)


def test_a_failure_of_dvc_is_an_error_with_its_words(folder, make_params):
    DATA.mkdir()
    with pytest.raises(StageError, match=r"`dvc commit --force data.dvc` failed: .*not inside of a DVC repository"):
        write_pin(make_params().download, [])


def test_dvc_ends_with_a_download_that_is_killed(folder, make_params, monkeypatch):
    for name in ("words", "gate"):
        os.mkfifo(name)
    dvc = Path("dvc")
    dvc.write_text("#!/bin/sh\nexec 3>words\nread _ <gate\necho still there >&3\n")
    dvc.chmod(0o755)
    monkeypatch.setattr(sys, "executable", "./dvc")
    pid = os.fork()
    if pid == 0:
        write_pin(make_params().download, [])
        os._exit(0)
    with Path("words").open() as words, Path("gate").open("r+b", buffering=0) as gate:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        gate.write(b"\n")
        assert words.read() == ""


def test_other_bytes_for_the_same_parameters_are_refused(pin_by_hand, make_params):
    params = make_params()
    download(params)
    pin, found = read_pin(), read_digest()
    pin["outs"][0]["md5"] = "0" * 32 + ".dir"
    YAML().dump(pin, PIN)
    before = read_all()
    with pytest.raises(StageError, match=f"got {found}, expected {'0' * 32}.dir.* delete data.dvc"):
        download(params)
    assert read_all() == before

    PIN.unlink()
    download(params)
    assert read_digest() == found


def test_left_overs_of_a_killed_run_are_replaced(pin_by_hand, make_params):
    write_files(Path("build/downloads"), {"mine.txt": b"mine", "old.tgz.0.part": b"of another archive"})
    download(make_params())
    before = read_all()
    assert read_files(Path("build/downloads")) == {"mine.txt": b"mine"}
    for name in (".data.incoming", ".data.outgoing"):
        write_files(Path(name), {"stray.txt": b"left by a killed run"})
    download(make_params())
    assert read_all() == before


OWN = {
    "beside": (
        lambda: write_files(DATA, {"captions.txt": b"mine", "originals/a.cr3": b"raw"}),
        "captions.txt, orig.*cr3",
    ),
    "hidden": (lambda: write_files(DATA, {".notes/todo": b"mine"}), r"\.notes/todo"),
    "edited": (lambda: (DATA / "petals.npy").write_bytes(b"mine"), r"petals\.npy \(changed since\)"),
    "linked folder": (lambda: (DATA / "more").symlink_to(Path.cwd()), "more"),
    "many": (lambda: write_files(DATA, dict.fromkeys("fedcb", b"mine")), "b, c, d and 2 more"),
    "no record": (RECEIPT.unlink, r"images\.npy, petals\.npy"),
    "damaged record": (lambda: RECEIPT.write_text('{"files": '), r"images\.npy, petals\.npy"),
    "another's record": (lambda: RECEIPT.write_text('{"files": []}'), r"images\.npy, petals\.npy"),
    "record of another kind": (lambda: RECEIPT.write_text("[]"), r"images\.npy, petals\.npy"),
}


@pytest.mark.parametrize(("add", "named"), OWN.values(), ids=OWN)
def test_peoples_own_files_are_never_replaced(folder, make_params, monkeypatch, add, named):
    monkeypatch.setattr(module, "write_pin", lambda *_: None)
    download(make_params())
    add()
    before = read_all()
    with pytest.raises(StageError, match=rf"data holds files that download did not put there: {named}\. .* move them"):
        download(make_params({"download.synthetic.seed": 1}))
    assert read_all() == before


def test_what_is_added_during_a_download_is_kept(pin_by_hand, make_params, monkeypatch):
    download(make_params())
    before, fetch = read_all(), SYNTHETIC.fetch

    def fetch_slowly(*arguments, **options):
        write_files(DATA, {"captions.txt": b"mine"})
        fetch(*arguments, **options)

    monkeypatch.setattr(SYNTHETIC, "fetch", fetch_slowly)
    with pytest.raises(StageError, match="data was changed while download ran"):
        download(make_params({"download.synthetic.seed": 1}))
    assert read_all() == before | {"data/captions.txt": b"mine"}


def test_a_pin_of_other_or_unknown_parameters_is_replaced(pin_by_hand, make_params):
    # The first pin is as `dvc add data` by hand leaves it, without parameters.
    YAML().dump({"outs": [{"md5": "0" * 32 + ".dir", "path": "data"}], "meta": None}, PIN)
    for seed in (0, 1):
        before = read_digest()
        download(make_params({"download.synthetic.seed": seed}))
        assert read_digest() != before and read_pin()["meta"]["download"]["synthetic"]["seed"] == seed


def test_a_folder_may_change_with_a_warning(pin_by_hand, make_params, capsys):
    write_files(Path("photographs"), {"rose/a.png": b"a", "rose/b.png": b"b"})
    params = make_params({"download.dataset": "folder", "download.source": "photographs"})
    download(params)
    first = read_digest()
    write_files(Path("photographs"), {"tulip/c.png": b"c"})
    Path("photographs/rose/a.png").unlink()
    download(params)
    assert read_digest() != first
    assert f"warning: the source has changed since it was pinned; data.dvc now pins {read_digest()}" in (
        capsys.readouterr().out
    )
    assert sorted(read_files(DATA)) == ["rose/b.png", "tulip/c.png"]


@pytest.mark.parametrize("error", [StageError("no cache"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_of_the_last_step_leaves_the_former_data(pin_by_hand, make_params, monkeypatch, error):
    download(make_params())
    write_files(Path("build/downloads"), {"102flowers.tgz.0.part": b"verified"})
    before = read_all()

    def break_off(*_):
        PIN.write_text("half of it")
        raise error

    monkeypatch.setattr(module, "write_pin", break_off)
    with pytest.raises((StageError, KeyboardInterrupt), match=r"no cache|data stays as it was: .*No space left|^$"):
        download(make_params({"download.synthetic.seed": 1}))
    assert read_all() == before


class Killed(BaseException):
    """Stands for a kill: what follows does nothing."""


@pytest.mark.parametrize("has_pin", [False, True])
@pytest.mark.parametrize("num_renames", range(4, 8))  # the first two try out whether data/ can be moved
def test_a_killed_download_is_undone_by_the_next(folder, make_params, monkeypatch, num_renames, has_pin):
    monkeypatch.setattr(module, "write_pin", lambda *_: None)
    if has_pin:
        PIN.write_text("outs: []\n")
    params = make_params({"download.synthetic.seed": 1})
    download(make_params())
    before, renamed = read_data_and_pin(), []

    def count(rename):
        def counted(path, target):
            renamed.append(path)
            if len(renamed) >= num_renames:
                raise Killed
            return rename(path, target)

        return counted

    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(Path, name, count(getattr(Path, name)))
        patch.setattr(module, "write_pin", lambda *_: PIN.write_text("outs: [half of"))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            download(params)
    if num_renames > 5:  # former data lie aside
        with pytest.raises(StageError, match="the last download was killed while it replaced data; run `dvc repro"):
            read_receipt()
    # Whatever is there is known to be of downloads, and what somebody adds is not.
    monkeypatch.setattr(SYNTHETIC, "fetch", lambda *_, **__: (_ for _ in ()).throw(StageError("no network")))
    if DATA.exists():
        write_files(DATA, {"mine.txt": b"mine"})
        with pytest.raises(StageError, match=r"did not put there: mine\.txt\. "):
            download(params)
        (DATA / "mine.txt").unlink()
    with pytest.raises(StageError, match="no network"):
        download(params)
    assert read_data_and_pin() == before


REFUSED = {
    "a file": (lambda: DATA.write_text("mine"), "data must be a folder or a link to one, and is a file"),
    "a broken link": (lambda: DATA.symlink_to("disk"), "data is a link to disk, which is no folder; .*mount its disk"),
    "a link to itself": (lambda: DATA.symlink_to("data"), "data is a link to data, which is no folder"),
    "build a file": (
        lambda: Path("build").write_text("mine"),
        "build must be a folder that you may write to: .*File exists",
    ),
    "broken pin": (
        lambda: PIN.write_text("<<<<<<< HEAD\na: b: c\n"),
        r"data\.dvc is not YAML: line ",
    ),
}


@pytest.mark.parametrize(("make", "problem"), REFUSED.values(), ids=REFUSED)
def test_a_place_that_cannot_take_the_data_is_refused_first(folder, make_params, monkeypatch, make, problem):
    make()
    monkeypatch.setattr(SYNTHETIC, "fetch", lambda *_, **__: pytest.fail("it has begun"))
    with pytest.raises(StageError, match=problem):
        download(make_params())


@pytest.mark.parametrize(
    "source", ["data", "./build/../data/rose", "way/rose", "data/..", ".data.incoming", "disk", ""]
)
def test_a_source_inside_or_around_the_data_is_refused(folder, make_params, source):
    write_files(Path("disk/flowers"), {"rose/a.png": b"mine"})
    write_files(Path("disk/.flowers.incoming"), {"a.png": b"mine"})
    DATA.symlink_to("disk/flowers")
    Path(".data.incoming").symlink_to("disk/.flowers.incoming")
    Path("way").symlink_to(DATA)
    Path("build").mkdir()
    before = read_files(Path("disk"))
    with pytest.raises(StageError, match=r"download\.source must lie outside of data, .* got "):
        download(make_params({"download.dataset": "folder", "download.source": source}))
    assert read_files(Path("disk")) == before


@pytest.mark.parametrize("is_moved", [False, True])  # by a run that was killed between the renames of a replacement
@pytest.mark.parametrize("error", [StageError("no network"), KeyboardInterrupt()])
def test_a_failure_midway_changes_nothing(pin_by_hand, make_params, monkeypatch, error, is_moved):
    download(make_params())
    before, offered = read_all(), []
    if is_moved:
        DATA.rename(".data.outgoing")

    def break_off(params, folder, previous):
        (folder / "images.npy").write_bytes(b"half of it")
        offered.append(previous)
        raise error

    monkeypatch.setattr(SYNTHETIC, "fetch", break_off)
    with pytest.raises(type(error)):
        download(make_params({"download.synthetic.seed": 1}))
    assert read_all() == before and not Path(".data.incoming").exists() and not Path(".data.outgoing").exists()
    # A dataset may take verified files from the last download.
    assert offered == [DATA]


def test_only_a_folder_of_ones_own_may_change():
    assert [name for name, dataset in DATASETS.items() if not dataset.is_immutable] == ["folder"]
