"""Tags that trace an MLflow run back to code, data and flow."""

import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.seams.checkout import Checkout, clean_environment
from tracking.lineage import read_lineage, read_model_digest


@pytest.fixture
def repository(folder, monkeypatch):
    """A repository of one commit."""
    # Nothing of the caller's, who may test from a git hook.
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    made = Checkout(folder, clean_environment(folder.parent))
    made.git("init", "--quiet")
    (folder / "code.py").write_text("print('rose')")
    made.commit("A rose")
    return made


def test_the_commit_is_named_and_local_changes_to_it(repository):
    Path("untracked.txt").write_text("no code")
    tags = read_lineage()
    assert tags["git_commit"] == repository.git("rev-parse", "HEAD").strip() and len(tags["git_commit"]) == 40
    assert tags["git_has_local_changes"] == "false"
    Path("code.py").write_text("print('tulip')")
    assert read_lineage()["git_has_local_changes"] == "true"


def test_data_and_dataset_are_named_by_dvcs_digests(repository):
    YAML().dump({"outs": [{"md5": "aaa.dir", "path": "data"}]}, Path("data.dvc"))
    stages = {
        "download": {"cmd": "x", "outs": [{"path": "build/download.json", "md5": "bbb"}]},
        "preprocess": {"cmd": "y", "outs": [{"path": "build/dataset", "md5": "ccc.dir"}]},
    }
    outs = [{"path": "build/losses.csv", "md5": "ddd"}, {"path": "build/model", "md5": "eee.dir"}]
    stages["train"] = {"cmd": "z", "outs": outs}
    YAML().dump({"schema": "2.0", "stages": stages}, Path("dvc.lock"))
    tags = read_lineage()
    assert (tags["dvc_data"], tags["dvc_dataset"], read_model_digest()) == ("aaa.dir", "ccc.dir", "eee.dir")


@pytest.mark.parametrize("stages", [{}, {"preprocess": {"cmd": "y"}}])
def test_what_dvc_does_not_know_yet_is_left_out(repository, stages):
    YAML().dump({"schema": "2.0", "stages": stages}, Path("dvc.lock"))
    assert set(read_lineage()) == {"git_commit", "git_has_local_changes"} and read_model_digest() == ""


def other_owner(repository, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch to test that


def damaged_index(repository, monkeypatch):
    Path(".git/index").write_bytes(b"rose")


def no_history(repository, monkeypatch):
    shutil.rmtree(".git")


def no_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository.folder))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (other_owner, "dubious ownership"),
        (damaged_index, "bad signature|index file"),
        (no_git, "cannot be run"),
        (no_history, None),
    ],
)
def test_where_git_cannot_tell_no_tag_speaks_of_code_and_the_reason_is_given_once(
    repository, monkeypatch, capsys, case, reason
):
    monkeypatch.setenv("DDPM_PREFECT_FLOW_RUN", "wise-owl")
    monkeypatch.setenv("DDPM_PREFECT_FLOW_RUN_ID", "123")
    case(repository, monkeypatch)
    for _ in range(2):
        assert read_lineage() == {"prefect_flow_run": "wise-owl", "prefect_flow_run_id": "123"}
    warnings = re.findall("tracking: warning: .*", capsys.readouterr().out)
    assert len(warnings) == (reason is not None)
    assert all(re.search(f"does not name the commit of the code: .*({reason})", each) for each in warnings)


def test_the_repository_is_that_of_the_folder_whatever_a_hook_names(repository, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(repository.folder / "none"))
    assert read_lineage()["git_commit"] == repository.git("rev-parse", "HEAD").strip()
