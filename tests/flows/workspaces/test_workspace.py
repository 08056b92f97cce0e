"""A flow run works in the checkout, or in a worktree from which its results are saved."""

import contextlib
import logging
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from contract.errors import FlowersError
from flows.workspaces import workspace
from flows.workspaces.workspace import enter_last_commit, open_workspace


@pytest.fixture
def in_flow_run(monkeypatch, caplog):
    """Stands in for the flow run "wise owl/7"; returns what it logs."""
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__NAME", "wise owl/7")
    monkeypatch.setattr(workspace, "get_run_logger", lambda: logging.getLogger("flow run"))
    caplog.set_level(logging.INFO, "flow run")
    return caplog


def test_in_the_checkout_nothing_is_set_up(checkout):
    with open_workspace("checkout") as place:
        assert place.folder == place.checkout == Path.cwd() == checkout.folder
        assert "MLFLOW_TRACKING_URI" not in os.environ
    assert not (checkout.folder / "workspaces").exists()


def test_an_isolated_run_works_in_its_worktree_and_is_saved_under_its_name(checkout, in_flow_run):
    with open_workspace("isolated") as place:
        assert Path.cwd() == place.folder == checkout.folder / "workspaces/wise-owl-7"
        assert place.checkout == checkout.folder
        Path("params.yaml").write_text("train:\n  learning_rate: 0.2\n")
    assert Path.cwd() == checkout.folder and "MLFLOW_TRACKING_URI" not in os.environ
    assert checkout.dvc("exp", "list", "--name-only").split() == ["wise-owl-7"]
    assert checkout.git("status", "--porcelain") == ""
    assert "`dvc exp apply wise-owl-7`" in in_flow_run.messages[-1]


def test_programs_that_a_run_starts_see_its_worktree_not_a_hooks_repository(checkout, in_flow_run, monkeypatch):
    for name, value in {"DIR": ".git", "WORK_TREE": "/", "INDEX_FILE": "/none", "LITERAL_PATHSPECS": "1"}.items():
        monkeypatch.setenv(f"GIT_{name}", value)
    with open_workspace("isolated") as place:
        found = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True)
        assert found.stdout == f"{place.folder}\n"


def test_a_run_that_fails_is_not_saved(checkout, in_flow_run):
    with pytest.raises(RuntimeError), open_workspace("isolated"):
        raise RuntimeError
    assert Path.cwd() == checkout.folder and "MLFLOW_TRACKING_URI" not in os.environ
    assert checkout.dvc("exp", "list", "--name-only").split() == []
    assert not (checkout.folder / "workspaces/wise-owl-7").exists()


@pytest.mark.parametrize(
    ("address", "meant", "variable"),
    [
        ("http://server:5000", "http://server:5000", "TRACKING"),
        ("sqlite:///mlflow.db", "sqlite:///{checkout}/mlflow.db", "TRACKING"),
        ("sqlite+pysqlite:///./mlflow.db", "sqlite+pysqlite:///{checkout}/mlflow.db", "TRACKING"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db", "TRACKING"),
        ("file:./mlruns", "file:{checkout}/mlruns", "TRACKING"),
        ("mlruns", "{checkout}/mlruns", "TRACKING"),
        ("", "sqlite:///{checkout}/mlflow.db", "TRACKING"),
        ("sqlite:///models.db", "sqlite:///{checkout}/models.db", "REGISTRY"),
    ],
)
def test_runs_are_recorded_where_the_checkout_records_them(
    checkout, in_flow_run, monkeypatch, address, meant, variable
):
    monkeypatch.setenv(f"MLFLOW_{variable}_URI", address)
    with open_workspace("isolated"):
        assert os.environ[f"MLFLOW_{variable}_URI"] == meant.format(checkout=checkout.folder)
    assert os.environ[f"MLFLOW_{variable}_URI"] == address


def test_an_isolated_run_starts_from_the_parameters_of_the_last_commit(checkout):
    profile, params = checkout.folder / "profiles/owl.yaml", checkout.folder / "params.yaml"
    profile.parent.mkdir()
    profile.write_text("profile: owl\n")
    checkout.commit("A profile")
    profile.write_text("profile: changed\n")
    params.write_text("train:\n  learning_rate: 0.7\n")
    with enter_last_commit():
        assert Path("params.yaml").read_text() == "train:\n  learning_rate: 0.1\n"
        assert Path("profiles/owl.yaml").read_text() == "profile: owl\n"
    assert Path.cwd() == checkout.folder and params.read_text() == "train:\n  learning_rate: 0.7\n"


def test_a_project_may_be_a_part_of_its_repository(checkout, in_flow_run, monkeypatch):
    shutil.move(checkout.folder / ".git", checkout.folder.parent)
    checkout.git("add", "--all", "..")
    checkout.git("commit", "--quiet", "--message", "A part")
    (checkout.folder / "params.yaml").write_text("train: {learning_rate: 0.7}")
    with enter_last_commit():
        assert Path("params.yaml").read_text() == "train:\n  learning_rate: 0.1\n"
    with open_workspace("isolated") as place:
        assert Path.cwd() == place.folder == checkout.folder / "workspaces/wise-owl-7/flowers"
        Path("params.yaml").write_text("train:\n  learning_rate: 0.2\n")
        Path("build/model").mkdir(parents=True)
        Path("build/model/weights").touch()
    assert "changes of the checkout: params.yaml" in in_flow_run.text
    assert sorted(path.name for path in (checkout.folder / "workspaces").iterdir()) == [".changing"]
    checkout.git("checkout", "--quiet", "params.yaml")
    checkout.dvc("exp", "apply", "wise-owl-7")
    assert checkout.read_yaml("params.yaml") == {"train": {"learning_rate": 0.2}}


def test_a_project_that_the_commit_does_not_hold_is_named(checkout):
    shutil.copytree(checkout.folder, checkout.folder / "copy", ignore=shutil.ignore_patterns(".git"))
    message = r"does not hold copy/dvc.yaml: commit the project"
    with contextlib.chdir("copy"), pytest.raises(FlowersError, match=message), enter_last_commit():
        pass


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda checkout: checkout.git("update-ref", "-d", "HEAD"), "this repository has none yet: commit the project"),
        (lambda checkout: os.environ.update(PATH=str(checkout.folder)), "cannot be run: .*'git'"),
    ],
)
def test_why_there_is_no_last_commit_is_said(checkout, monkeypatch, change, reason):
    monkeypatch.setenv("PATH", os.environ["PATH"])
    change(checkout)
    with pytest.raises(FlowersError, match=rf"starts from the last commit, and .*{reason}"), enter_last_commit():
        pass


def test_without_a_commit_there_is_nothing_to_start_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlowersError, match=r"last commit, and .*fatal"), enter_last_commit():
        pass


def test_images_that_only_the_checkout_finds_are_refused(checkout, in_flow_run, monkeypatch):
    (checkout.folder / "pictures").mkdir()
    params = SimpleNamespace(download=SimpleNamespace(source="pictures"), section=lambda _: {})
    monkeypatch.setattr(workspace, "activate", lambda *_: params)
    with open_workspace("checkout") as place:
        place.activate(None, {})
    with pytest.raises(FlowersError, match="'pictures' is a relative path"), open_workspace("isolated") as place:
        place.activate(None, {})
    params.download.source = str(checkout.folder / "pictures")
    with open_workspace("isolated") as place:
        place.activate(None, {})


def test_uncommitted_changes_are_named_but_not_those_of_results(checkout, in_flow_run):
    for name in ("dvc.yaml", "data.dvc", "params.yaml"):
        path = checkout.folder / name
        path.write_text(path.read_text() + "# changed\n")
    with open_workspace("isolated"):
        pass
    (warning,) = [each.getMessage() for each in in_flow_run.records if each.levelname == "WARNING"]
    assert warning.endswith("uncommitted changes of the checkout: dvc.yaml, params.yaml")
