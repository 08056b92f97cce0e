"""Worktrees come with all that a run needs, and are removed however it ends."""

import signal
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


def test_a_half_made_worktree_is_made_again(checkout):
    half = checkout.folder / "workspaces/wise-owl"
    half.mkdir(parents=True)
    (half / "params.yaml").touch()
    half.with_name("wise-owl.lock").touch()
    with make_worktree(checkout.folder, "wise-owl") as folder:
        assert folder == half and (folder / "dvc.yaml").is_file()
    # Its folder was deleted by hand: git still lists it.
    checkout.git("worktree", "add", "--quiet", "--detach", str(half), "HEAD")
    checkout.run("rm", "-r", str(half))
    with make_worktree(checkout.folder, "wise-owl") as folder:
        assert (folder / "dvc.yaml").is_file()


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
