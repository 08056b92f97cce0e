"""Worktrees come with all that a run needs, and are removed however it ends."""

import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contract.errors import FlowersError
from flows.workspaces.worktrees import make_worktree, remove_left_overs
from tests.seams.checkout import Checkout, wait_until

PROJECT = Path(__file__).parents[3]

LIVES = f"""
import sys, time
sys.path.insert(0, {str(PROJECT)!r})
from pathlib import Path
from flows.workspaces.worktrees import make_worktree
with make_worktree(Path.cwd(), "wise-owl"):
    {{then}}
    print("ready", flush=True)
    time.sleep(60)
"""


def worktrees(checkout):
    """The names of those that git knows, without the checkout."""
    listed = checkout.git("worktree", "list", "--porcelain").splitlines()
    return [Path(line.split(" ", 1)[1]).name for line in listed if line.startswith("worktree ")][1:]


def left(checkout):
    return sorted(path.name for path in (checkout.folder / "workspaces").iterdir() if path.name != ".changing")


def is_clean(checkout):
    return worktrees(checkout) == [] and left(checkout) == []


def test_a_worktree_holds_the_last_commit_and_goes_away(checkout):
    changed = "train:\n  learning_rate: 0.7\n"
    (checkout.folder / "params.yaml").write_text(changed)
    with make_worktree(checkout.folder, "wise-owl") as folder:
        assert folder == checkout.folder / "workspaces/wise-owl"
        assert (folder / "params.yaml").read_text() == "train:\n  learning_rate: 0.1\n"
        assert worktrees(checkout) == ["wise-owl"]
        # Neither git nor DVC takes it for a part of the checkout.
        assert checkout.git("status", "--porcelain") == " M params.yaml\n"
        assert "workspaces" not in checkout.dvc("status")
    assert is_clean(checkout) and (checkout.folder / "params.yaml").read_text() == changed


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_worktree_goes_away_when_its_run_fails_or_is_cancelled(checkout, error):
    with pytest.raises(error), make_worktree(checkout.folder, "wise-owl"):
        raise error
    assert is_clean(checkout)


def test_runs_of_one_name_that_begin_and_end_at_once_are_kept_apart(checkout):
    with make_worktree(checkout.folder, "wise-owl") as first, make_worktree(checkout.folder, "wise-owl") as second:
        assert (first.name, second.name) == ("wise-owl", "wise-owl-2")
    together = threading.Barrier(4)

    def run(_):
        together.wait()
        for _ in range(3):
            with make_worktree(checkout.folder, "wise-owl") as folder:
                assert (folder / "params.yaml").is_file()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert is_clean(checkout)


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_else(checkout, start_python):
    note = checkout.folder / "workspaces/mine/note.txt"
    note.parent.mkdir(parents=True)
    note.write_text("a person's folder")
    process = start_python(LIVES.format(then=""))
    with make_worktree(checkout.folder, "brave-fox"):
        assert worktrees(checkout) == ["brave-fox", "wise-owl"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (checkout.folder / "workspaces/wise-owl/params.yaml").is_file()
        with make_worktree(checkout.folder, "calm-cat"), make_worktree(checkout.folder, "mine") as beside:
            assert worktrees(checkout) == ["brave-fox", "calm-cat", "mine-2"]
            assert beside.name == "mine-2"
    assert left(checkout) == ["mine"] and note.read_text() == "a person's folder"


def test_the_stage_of_a_killed_run_keeps_the_worktree_until_it_ends(checkout, start_python):
    # As tasks.stage starts it: with the descriptors that are inheritable.
    stage = "import subprocess; subprocess.Popen(['sleep', '30'], close_fds=False, start_new_session=True)"
    process = start_python(LIVES.format(then=stage))
    process.send_signal(signal.SIGKILL)
    process.wait()
    remove_left_overs(checkout.folder)
    assert worktrees(checkout) == ["wise-owl"]
    (sleeping,) = Checkout(checkout.folder, checkout.environment).processes("sleep 30")
    sleeping.kill()
    wait_until(lambda: remove_left_overs(checkout.folder) or is_clean(checkout), "the removal", seconds=30)


@pytest.fixture
def killed(checkout, start_python):
    """The worktree of a killed run."""
    process = start_python(LIVES.format(then=""))
    process.kill()
    process.wait()
    return checkout.folder / "workspaces/wise-owl"


def test_a_half_made_worktree_is_made_again(checkout, killed):
    (checkout.folder / ".git/worktrees/wise-owl/index").unlink()  # git writes it when all files are there
    (killed / "dvc.yaml").unlink()
    with make_worktree(checkout.folder, "wise-owl") as folder:
        assert folder == killed and (folder / "dvc.yaml").is_file()
    assert is_clean(checkout)
    # Its folder was deleted by hand: git still lists it.
    checkout.git("worktree", "add", "--quiet", "--detach", str(killed), "HEAD")
    checkout.run("rm", "-r", str(killed))
    with make_worktree(checkout.folder, "wise-owl") as folder:
        assert (folder / "dvc.yaml").is_file()


def test_what_a_run_makes_goes_with_its_worktree(checkout, killed):
    for name in (
        "build/model/averaged.safetensors",
        "data/images",
        ".data.incoming/1",
        ".dvc/tmp/lock",
        "ddpm/__pycache__/unet.pyc",
    ):
        (killed / name).parent.mkdir(parents=True, exist_ok=True)
        (killed / name).write_text("made by a stage")
    for name in ("params.yaml", "dvc.lock", "data.dvc", "build/.metrics.12.tmp.json", "build/download.lock"):
        (killed / name).write_text("train: {}")
    remove_left_overs(checkout.folder)
    assert is_clean(checkout)


def test_people_s_work_in_the_worktree_of_a_killed_run_is_kept_and_named(checkout, killed, caplog):
    def is_kept(path):
        caplog.clear()
        for _ in range(2):
            remove_left_overs(checkout.folder)
        assert f"{killed} stays: it holds what no run makes" in caplog.messages[-1]
        return path.is_file() and worktrees(checkout) == ["wise-owl"]

    for name in ("note.txt", "build/note.txt", "data2/a", "blüte\n.txt"):
        (killed / name).parent.mkdir(parents=True, exist_ok=True)
        (killed / name).write_text("a person's")
        assert is_kept(killed / name)
        (killed / name).unlink()
    code = (killed / "dvc.yaml").read_text()
    (killed / "dvc.yaml").write_text("a person's")
    assert is_kept(killed / "dvc.yaml") and (killed / "dvc.yaml").read_text() == "a person's"
    (killed / "dvc.yaml").write_text(code)
    checkout.run("git", "-C", str(killed), "commit", "--quiet", "--allow-empty", "--message", "Mine")
    assert is_kept(killed / "dvc.yaml")
    checkout.run("git", "-C", str(killed), "reset", "--quiet", "--hard", "HEAD~")
    remove_left_overs(checkout.folder)
    assert is_clean(checkout)


def test_people_s_work_in_the_worktree_of_a_run_is_kept_at_its_end(checkout):
    with make_worktree(checkout.folder, "wise-owl") as folder:
        (folder / "note.txt").write_text("a person's")
    assert (folder / "note.txt").read_text() == "a person's"


def lock_like_a_package_manager(folder):
    folder.mkdir()
    folder.with_name("mine.lock").write_text("# generated by Poetry")


def forge_a_lock(folder):
    lock_like_a_package_manager(folder)
    shutil.copy(folder.with_name("wise-owl.lock"), folder.with_name("mine.lock"))


def add_a_worktree(folder):
    subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(folder)], check=True, cwd=folder.parents[1])
    folder.with_name("mine.lock").touch()


def link_to_a_folder(folder):
    folder.symlink_to(folder.parents[2] / "elsewhere")
    (folder.parents[2] / "elsewhere").mkdir()
    shutil.copy(folder.with_name("wise-owl.lock"), folder.with_name("mine.lock"))


@pytest.mark.parametrize("make", [lock_like_a_package_manager, forge_a_lock, add_a_worktree, link_to_a_folder])
def test_a_folder_that_no_run_made_is_never_removed(checkout, make):
    with make_worktree(checkout.folder, "wise-owl") as folder:
        mine = folder.with_name("mine")
        make(mine)
        (mine / "note.txt").write_text("a person's")
        lock = mine.with_name("mine.lock").read_text()
        remove_left_overs(checkout.folder)
        with make_worktree(checkout.folder, "mine") as beside:
            assert beside.name == "mine-2"
    assert (mine / "note.txt").read_text() == "a person's" and mine.with_name("mine.lock").read_text() == lock


def test_worktrees_may_lie_on_another_disk(checkout):
    other = checkout.folder.parent / "disk"
    other.mkdir()
    (checkout.folder / "workspaces").symlink_to(other)
    with make_worktree(checkout.folder, "wise-owl") as folder:
        assert folder == checkout.folder / "workspaces/wise-owl" and (other / "wise-owl/dvc.yaml").is_file()
    assert is_clean(checkout) and (checkout.folder / "workspaces").is_symlink()
    (checkout.folder / "workspaces").unlink()
    (checkout.folder / "workspaces").write_text("a file")
    with (
        pytest.raises(FlowersError, match=r"cannot work in .*workspaces: .*exists"),
        make_worktree(checkout.folder, "x"),
    ):
        pass


def test_hooks_such_as_those_of_dvc_install_do_not_run(checkout):
    hook = checkout.folder / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with make_worktree(checkout.folder, "wise-owl") as folder:
        assert (folder / "dvc.yaml").is_file()


def test_without_a_commit_there_is_one_clear_error(tmp_path):
    with pytest.raises(FlowersError, match=r"last commit, and .*fatal: "), make_worktree(tmp_path, "wise-owl"):
        pass
    assert list((tmp_path / "workspaces").glob("wise-owl*")) == []


def test_checkpoints_outlive_the_worktree(checkout):
    with make_worktree(checkout.folder, "wise-owl") as folder:
        (folder / "build/checkpoints/abc").mkdir()
        (folder / "build/checkpoints/abc/step_3").write_text("weights")
    assert (checkout.folder / "build/checkpoints/abc/step_3").read_text() == "weights"
    with make_worktree(checkout.folder, "brave-fox") as folder:
        assert (folder / "build/checkpoints/abc/step_3").read_text() == "weights"
