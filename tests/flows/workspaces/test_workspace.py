"""Worktrees come with all that a run needs, and go however it ends."""

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.workspaces import workspace
from flows.workspaces.workspace import WorkspaceError, last_commit, opened, remove_left_overs, uncommitted, worktree
from tests.seams.checkout import Checkout, wait_until

PROJECT = Path(__file__).parents[3]

LIVES = f"""
import sys, time
sys.path.insert(0, {str(PROJECT)!r})
from pathlib import Path
from flows.workspaces.workspace import worktree
with worktree(Path.cwd(), "wise-owl"):
    {{then}}
    print("ready", flush=True)
    time.sleep(60)
"""


def worktrees(checkout):
    """The names of those that git knows, beside the checkout."""
    listed = checkout.git("worktree", "list", "--porcelain").splitlines()
    return [Path(line.split(" ", 1)[1]).name for line in listed if line.startswith("worktree ")][1:]


def left(checkout):
    return sorted(path.name for path in (checkout.folder / "workspaces").iterdir() if path.name != ".changing")


def test_a_worktree_holds_the_last_commit_and_goes_away(checkout):
    (checkout.folder / "params.yaml").write_text("train:\n  learning_rate: 0.7\n")
    with worktree(checkout.folder, "wise-owl") as folder:
        assert folder == checkout.folder / "workspaces/wise-owl"
        assert (folder / "params.yaml").read_text() == "train:\n  learning_rate: 0.1\n"
        assert worktrees(checkout) == ["wise-owl"]
        # Neither git nor DVC takes it for a part of the checkout.
        assert checkout.git("status", "--porcelain") == " M params.yaml\n"
        assert "workspaces" not in checkout.dvc("status")
    assert worktrees(checkout) == [] and left(checkout) == []
    assert (checkout.folder / "params.yaml").read_text() == "train:\n  learning_rate: 0.7\n"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_worktree_goes_away_when_its_run_fails_or_is_cancelled(checkout, error):
    with pytest.raises(error), worktree(checkout.folder, "wise-owl"):
        raise error
    assert worktrees(checkout) == [] and left(checkout) == []


def test_runs_of_the_same_name_stand_side_by_side(checkout):
    with worktree(checkout.folder, "wise-owl") as first, worktree(checkout.folder, "wise-owl") as second:
        assert (first.name, second.name) == ("wise-owl", "wise-owl-2")
    assert left(checkout) == []


def test_runs_that_begin_and_end_at_once_do_not_disturb_each_other(checkout):
    made, together = [], threading.Barrier(4)

    def run():
        together.wait()
        for _ in range(3):
            with worktree(checkout.folder, "wise-owl") as folder:
                made.append((folder / "params.yaml").is_file())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [True] * 12
    assert worktrees(checkout) == [] and left(checkout) == []


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_lives_is_not(checkout, start_python):
    process = start_python(LIVES.format(then=""))
    with worktree(checkout.folder, "brave-fox"):
        assert left(checkout) == ["brave-fox", "brave-fox.lock", "wise-owl", "wise-owl.lock"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (checkout.folder / "workspaces/wise-owl/params.yaml").is_file()
        with worktree(checkout.folder, "calm-cat"):
            assert worktrees(checkout) == ["brave-fox", "calm-cat"]
            assert left(checkout) == ["brave-fox", "brave-fox.lock", "calm-cat", "calm-cat.lock"]
    assert left(checkout) == []


def test_the_stage_of_a_killed_run_keeps_the_worktree_until_its_work_is_saved(checkout, start_python):
    # As tasks.stage starts it: with the descriptors that are inheritable.
    stage = "import subprocess; subprocess.Popen(['sleep', '30'], close_fds=False, start_new_session=True)"
    process = start_python(LIVES.format(then=stage))
    process.send_signal(signal.SIGKILL)
    process.wait()
    remove_left_overs(checkout.folder)
    assert worktrees(checkout) == ["wise-owl"]
    (sleeping,) = Checkout(checkout.folder, checkout.environment).processes("sleep 30")
    sleeping.kill()
    wait_until(lambda: remove_left_overs(checkout.folder) or left(checkout) == [], "the removal", seconds=10)
    assert worktrees(checkout) == []


def test_a_worktree_that_was_made_by_half_is_removed(checkout):
    half = checkout.folder / "workspaces/wise-owl"
    half.mkdir(parents=True)
    (half / "params.yaml").touch()
    with worktree(checkout.folder, "wise-owl") as folder:
        assert folder == half and (folder / "dvc.yaml").is_file()
    # Its folder was deleted by hand: git still lists it.
    checkout.git("worktree", "add", "--quiet", "--detach", str(half), "HEAD")
    for path in sorted(half.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    half.rmdir()
    with worktree(checkout.folder, "wise-owl") as folder:
        assert (folder / "dvc.yaml").is_file()


def test_hooks_such_as_those_of_dvc_install_do_not_run(checkout):
    hook = checkout.folder / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with worktree(checkout.folder, "wise-owl") as folder:
        assert (folder / "dvc.yaml").is_file()


def test_without_a_commit_there_is_one_clear_error(tmp_path):
    with (
        pytest.raises(WorkspaceError, match=r"a git worktree of the last commit, and .* failed: fatal: "),
        worktree(tmp_path, "wise-owl"),
    ):
        pass
    assert list((tmp_path / "workspaces").glob("wise-owl*")) == []


def test_checkpoints_are_those_of_the_checkout_and_outlive_the_worktree(checkout):
    with worktree(checkout.folder, "wise-owl") as folder:
        (folder / "build/checkpoints/abc").mkdir()
        (folder / "build/checkpoints/abc/step_3").write_text("weights")
    assert (checkout.folder / "build/checkpoints/abc/step_3").read_text() == "weights"
    with worktree(checkout.folder, "brave-fox") as folder:
        assert (folder / "build/checkpoints/abc/step_3").read_text() == "weights"


class Log:
    def __init__(self):
        self.lines = []

    def info(self, text, *arguments):
        self.lines.append(text % arguments)

    warning = info


@pytest.fixture
def run_named(monkeypatch):
    """Lets `opened` find itself in a flow run of that name, and gives its log."""

    def name(name):
        log = Log()
        monkeypatch.setattr(workspace, "get_run_logger", lambda: log)
        monkeypatch.setattr(workspace, "flow_run", type("Run", (), {"name": name}))
        return log.lines

    return name


def test_in_the_checkout_nothing_is_set_up(checkout):
    with opened("checkout") as place:
        assert place.folder == place.checkout == Path.cwd() == checkout.folder
        assert "MLFLOW_TRACKING_URI" not in os.environ
    assert not (checkout.folder / "workspaces").exists()


def test_an_isolated_run_works_in_its_worktree_and_is_saved_under_its_name(checkout, run_named):
    lines = run_named("wise owl/7")
    with opened("isolated") as place:
        assert Path.cwd() == place.folder == checkout.folder / "workspaces/wise-owl-7"
        assert place.checkout == checkout.folder
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{checkout.folder}/mlflow.db"
        Path("params.yaml").write_text("train:\n  learning_rate: 0.2\n")
    assert Path.cwd() == checkout.folder and "MLFLOW_TRACKING_URI" not in os.environ
    assert checkout.dvc("exp", "list", "--name-only").split() == ["wise-owl-7"]
    assert checkout.git("status", "--porcelain") == ""
    assert lines[-1] == "Saved as DVC experiment wise-owl-7: `dvc exp apply wise-owl-7` brings it into the checkout"


def test_a_run_that_fails_is_not_saved(checkout, run_named):
    run_named("wise-owl")
    with pytest.raises(RuntimeError), opened("isolated"):
        raise RuntimeError
    assert Path.cwd() == checkout.folder and "MLFLOW_TRACKING_URI" not in os.environ
    assert checkout.dvc("exp", "list", "--name-only").split() == [] and left(checkout) == []


def test_a_tracking_server_stays_the_one_that_is_named(checkout, run_named, monkeypatch):
    run_named("wise-owl")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    with opened("isolated"):
        assert os.environ["MLFLOW_TRACKING_URI"] == "http://server:5000"
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://server:5000"


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{checkout}/mlflow.db"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("file:./mlruns", "file:{checkout}/mlruns"),
        ("", "sqlite:///{checkout}/mlflow.db"),
    ],
)
def test_runs_are_recorded_where_the_checkout_records_them_not_in_the_worktree(
    checkout, run_named, monkeypatch, address, meant
):
    run_named("wise-owl")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with opened("isolated"):
        assert os.environ["MLFLOW_TRACKING_URI"] == meant.format(checkout=checkout.folder)
    assert os.environ["MLFLOW_TRACKING_URI"] == address


def test_an_isolated_run_starts_from_the_parameters_of_the_last_commit(checkout):
    saved = checkout.folder / "profiles/owl.yaml"
    saved.parent.mkdir()
    saved.write_text("profile: owl\n")
    checkout.commit("A profile")
    saved.write_text("profile: changed\n")
    (checkout.folder / "params.yaml").write_text("train:\n  learning_rate: 0.7\n")
    with last_commit():
        assert Path("params.yaml").read_text() == "train:\n  learning_rate: 0.1\n"
        assert Path("profiles/owl.yaml").read_text() == "profile: owl\n"
    assert Path.cwd() == checkout.folder
    assert (checkout.folder / "params.yaml").read_text() == "train:\n  learning_rate: 0.7\n"


def test_without_a_commit_there_is_nothing_to_start_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkspaceError, match=r"starts from the last commit, and .*fatal"), last_commit():
        pass


def test_images_that_only_the_checkout_finds_are_refused(checkout, run_named, monkeypatch):
    run_named("wise-owl")
    (checkout.folder / "pictures").mkdir()
    given = SimpleNamespace(download=SimpleNamespace(source="pictures"), section=lambda _: {})
    monkeypatch.setattr(workspace, "activate", lambda *_: given)
    with pytest.raises(WorkspaceError, match=r"'pictures' is looked for in the worktree"), opened("isolated") as place:
        place.put_in_force(None, {})
    given.download.source = str(checkout.folder / "pictures")
    with opened("isolated") as place:
        place.put_in_force(None, {})
    given.download.source = "pictures"
    with opened("checkout") as place:
        place.put_in_force(None, {})


def test_changes_that_are_not_committed_are_named_once(checkout, run_named):
    lines = run_named("wise-owl")
    for name in ("dvc.yaml", "data.dvc", "params.yaml"):
        path = checkout.folder / name
        path.write_text(path.read_text() + "# changed\n")
    assert uncommitted(checkout.folder) == "dvc.yaml, params.yaml"
    with opened("isolated"):
        pass
    assert [line for line in lines if "not committed" in line] == [
        "The checkout has changes that are not committed, which this isolated run does not see: dvc.yaml, params.yaml"
    ]
