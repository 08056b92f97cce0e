"""A flow run works in the checkout, or in a worktree from which its results are saved."""

import logging
import os
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


def test_a_run_that_fails_is_not_saved(checkout, in_flow_run):
    with pytest.raises(RuntimeError), open_workspace("isolated"):
        raise RuntimeError
    assert Path.cwd() == checkout.folder and "MLFLOW_TRACKING_URI" not in os.environ
    assert checkout.dvc("exp", "list", "--name-only").split() == []
    assert not (checkout.folder / "workspaces/wise-owl-7").exists()


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("http://server:5000", "http://server:5000"),
        ("sqlite:///mlflow.db", "sqlite:///{checkout}/mlflow.db"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("file:./mlruns", "file:{checkout}/mlruns"),
        ("", "sqlite:///{checkout}/mlflow.db"),
    ],
)
def test_runs_are_recorded_where_the_checkout_records_them(checkout, in_flow_run, monkeypatch, address, meant):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with open_workspace("isolated"):
        assert os.environ["MLFLOW_TRACKING_URI"] == meant.format(checkout=checkout.folder)
    assert os.environ["MLFLOW_TRACKING_URI"] == address


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
