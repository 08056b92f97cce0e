"""Tags that trace an MLflow run back to code, data and flow."""

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


def test_the_flow_run_is_named_also_without_git_or_history(folder, monkeypatch):
    monkeypatch.setenv("DDPM_PREFECT_FLOW_RUN", "wise-owl")
    monkeypatch.setenv("DDPM_PREFECT_FLOW_RUN_ID", "123")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    expected = {"git_has_local_changes": "false", "prefect_flow_run": "wise-owl", "prefect_flow_run_id": "123"}
    assert read_lineage() == expected
    monkeypatch.setenv("PATH", str(folder))
    assert read_lineage() == expected
