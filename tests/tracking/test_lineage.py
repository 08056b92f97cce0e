"""What traces an MLflow run back to code, data and flow."""

import subprocess
import sys
from types import ModuleType

import pytest
from ruamel.yaml import YAML

from tracking.lineage import code_digest, lineage_tags, model_digest


def git(*arguments):
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    result = subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True)
    return result.stdout.strip()


@pytest.fixture
def repository(folder, monkeypatch):
    """A repository of one commit."""
    # Nothing of the caller's, who may test from a git hook.
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    git("init", "--quiet")
    (folder / "code.py").write_text("print('rose')")
    git("add", "code.py")
    git("commit", "--quiet", "--message", "A rose")
    return folder


def write_yaml(path, content):
    YAML().dump(content, path)


def test_the_commit_is_named(repository):
    tags = lineage_tags()
    assert tags["git_commit"] == git("rev-parse", "HEAD") and len(tags["git_commit"]) == 40
    assert tags["git_has_local_changes"] == "false"


def test_local_changes_are_told(repository):
    (repository / "untracked.txt").write_text("no code")
    assert lineage_tags()["git_has_local_changes"] == "false"
    (repository / "code.py").write_text("print('tulip')")
    assert lineage_tags()["git_has_local_changes"] == "true"


def test_data_and_dataset_are_named_by_dvcs_digests(repository):
    write_yaml(repository / "data.dvc", {"outs": [{"md5": "aaa.dir", "path": "data"}]})
    stages = {
        "download": {"cmd": "x", "outs": [{"path": "build/download.json", "md5": "bbb"}]},
        "preprocess": {"cmd": "y", "outs": [{"path": "build/dataset", "md5": "ccc.dir"}]},
    }
    outs = [{"path": "build/losses.csv", "md5": "ddd"}, {"path": "build/model", "md5": "eee.dir"}]
    stages["train"] = {"cmd": "z", "outs": outs}
    write_yaml(repository / "dvc.lock", {"schema": "2.0", "stages": stages})
    tags = lineage_tags()
    assert (tags["dvc_data"], tags["dvc_dataset"], model_digest()) == ("aaa.dir", "ccc.dir", "eee.dir")


@pytest.mark.parametrize("stages", [{}, {"preprocess": {"cmd": "y"}}])
def test_what_dvc_does_not_know_yet_is_left_out(repository, stages):
    write_yaml(repository / "dvc.lock", {"schema": "2.0", "stages": stages})
    assert set(lineage_tags()) == {"git_commit", "git_has_local_changes"} and model_digest() == ""


def test_the_flow_run_is_named(repository, monkeypatch):
    monkeypatch.setenv("DDPM_PREFECT_FLOW_RUN", "wise-owl")
    assert lineage_tags()["prefect_flow_run"] == "wise-owl"


def test_without_history_there_is_no_commit(folder, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    assert set(lineage_tags()) <= {"git_has_local_changes"}


def test_without_git_there_is_no_commit(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository))
    assert "git_commit" not in lineage_tags()


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Pretends that a module of one line has been imported."""

    def pretend(name, line):
        module = ModuleType(name)
        module.__file__ = str(tmp_path / f"{name}.py")
        (tmp_path / f"{name}.py").write_text(line)
        monkeypatch.setitem(sys.modules, name, module)

    return pretend


def test_the_digest_of_the_code_changes_with_the_stage(tmp_path):
    source = tmp_path / "train.py"
    source.write_text("a = 1")
    before = code_digest(source)
    assert code_digest(source) == before != code_digest()
    source.write_text("a = 2")
    assert code_digest(source) != before


def test_the_digest_of_the_code_changes_with_the_mathematics_alone(imported):
    before = code_digest()
    assert code_digest() == before
    imported("another.module", "a = 1")
    imported("ddpmlike", "a = 1")
    assert code_digest() == before
    imported("ddpm.invented", "a = 1")
    with_module = code_digest()
    assert with_module != before
    imported("ddpm.invented", "a = 2")
    assert code_digest() not in {before, with_module}
    assert code_digest(without=["ddpm.invented"]) == before
