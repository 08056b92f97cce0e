"""Runs are saved as DVC experiments: DVC lists and applies them, and they are found by name."""

import sys
from pathlib import Path

import pytest

from contract.errors import FlowersError
from flows.workspaces.experiments import (
    find_commit,
    keep_stages,
    list_experiments,
    make_experiment_name,
    save_experiment,
)
from flows.workspaces.worktrees import make_worktree
from tests.seams.checkout import Checkout

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def save(checkout):
    """Saves an experiment with that learning rate from a worktree; returns its name."""

    def run(name, learning_rate=0.2):
        with make_worktree(checkout.folder, "workspace") as folder:
            (folder / "params.yaml").write_text(f"train:\n  learning_rate: {learning_rate}\n")
            return save_experiment(folder, name)

    return run


def test_dvc_lists_applies_and_removes_what_was_saved(checkout, save):
    before = checkout.git("rev-parse", "HEAD"), checkout.git("branch", "--all")
    assert save("wise-owl") == "wise-owl"
    assert checkout.git("status", "--porcelain") == ""
    assert (checkout.git("rev-parse", "HEAD"), checkout.git("branch", "--all")) == before
    assert checkout.rows()["wise-owl"]["train.learning_rate"] == "0.2"
    checkout.dvc("exp", "apply", "wise-owl")
    assert checkout.git("status", "--porcelain") == " M params.yaml\n"
    assert checkout.read_yaml("params.yaml") == {"train": {"learning_rate": 0.2}}
    checkout.dvc("exp", "remove", "wise-owl")
    assert list_experiments(checkout.folder) == {}


SAVES = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(PROJECT)!r})
from pathlib import Path
from flows.workspaces.experiments import save_experiment
from flows.workspaces.worktrees import make_worktree
with make_worktree(Path.cwd(), "workspace") as folder:
    (folder / "params.yaml").write_text("train: {{learning_rate: 0.2}}")
    save_experiment(folder, "wise-owl")
"""


def test_a_git_hook_of_a_linked_worktree_saves_and_leaves_the_users_index_alone(checkout):
    linked = Checkout(checkout.folder.parent / "linked", checkout.environment)
    checkout.git("worktree", "add", "--quiet", "--detach", str(linked.folder))
    hook = checkout.folder / ".git/hooks/pre-commit"  # git names it the repository and the index
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(SAVES)
    hook.chmod(0o755)
    (linked.folder / "params.yaml").write_text("train: {learning_rate: 0.7}")
    linked.commit("Mine")
    assert linked.git("show", "HEAD:params.yaml") == "train: {learning_rate: 0.7}"
    assert linked.git("status", "--porcelain") == checkout.git("status", "--porcelain") == ""
    assert linked.git("show", f"{find_commit(linked.folder, 'wise-owl')}:params.yaml") == "train: {learning_rate: 0.2}"


def test_other_stages_are_removed_from_a_lock(tmp_path):
    lock = tmp_path / "dvc.lock"
    lock.write_text("schema: '2.0'\nstages:\n  download:\n    cmd: a\n  train:\n    cmd: b\n")
    keep_stages(lock, ("download", "preprocess"))
    assert lock.read_text() == "schema: '2.0'\nstages:\n  download:\n    cmd: a\n"


def test_a_name_that_is_taken_gets_a_number(checkout, save):
    assert [save("wise-owl", rate) for rate in (0.2, 0.3, 0.4)] == ["wise-owl", "wise-owl-2", "wise-owl-3"]
    rates = {name: row["train.learning_rate"] for name, row in checkout.rows().items() if name.startswith("wise")}
    assert rates == {"wise-owl": "0.2", "wise-owl-2": "0.3", "wise-owl-3": "0.4"}
    # `dvc exp apply main` would mean the branch.
    assert save("main") == "main-2"
    checkout.git("commit", "--quiet", "--allow-empty", "--message", "Later")
    assert save("wise-owl") == "wise-owl-4"


def test_refs_that_dvc_uses_in_the_checkout_are_left_alone(checkout, save):
    # Refs that `dvc exp run` holds while it runs, and its stash.
    head = checkout.git("rev-parse", "HEAD").strip()
    busy = [f"refs/exps/exec/{name}" for name in ("EXEC_HEAD", "EXEC_BASELINE", "EXEC_MERGE")] + ["refs/exps/stash"]
    for ref in busy:
        checkout.git("update-ref", ref, head)
    assert save("wise-owl") == "wise-owl"
    assert [checkout.git("rev-parse", ref).strip() for ref in busy] == [head] * len(busy)
    assert [ref.rpartition("/")[2] for ref in list_experiments(checkout.folder)] == ["wise-owl"]


def test_git_need_not_know_who_runs_the_service(checkout, save, monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        for part in ("NAME", "EMAIL"):
            monkeypatch.delenv(f"GIT_{role}_{part}")
    checkout.git("config", "user.useConfigOnly", "true")
    assert save("wise-owl") == "wise-owl"


@pytest.mark.parametrize(
    ("run_name", "name"),
    [
        ("Wise Owl, 7th try", "Wise-Owl-7th-try"),
        ("a/b..c~d^e:f?g*h[i\\j@{k}", "a-b-c-d-e-f-g-h-i-j-k"),
        ("-rf", "rf"),
        ("rate=1e-3.lock", "rate-1e-3-lock"),
        ("blüte", "bl-te"),
        ("…", "run"),
        ("x" * 300, "x" * 100),
    ],
)
def test_a_flow_runs_name_becomes_a_name_for_git_and_folders(checkout, run_name, name):
    assert make_experiment_name(run_name) == name
    checkout.git("check-ref-format", f"refs/exps/ab/cd/{name}")


def test_revisions_are_found_by_what_git_and_dvc_call_them(checkout, save):
    head = checkout.git("rev-parse", "HEAD").strip()
    save("wise-owl")
    (experiment,) = list_experiments(checkout.folder).values()
    assert [find_commit(checkout.folder, name) for name in ("HEAD", "main", head[:8])] == [head] * 3
    assert find_commit(checkout.folder, "wise-owl") == experiment != head
    assert checkout.git("rev-parse", f"{experiment}^").strip() == head


def test_a_name_that_nothing_has_is_refused(checkout):
    for name in ("wise-owl", "--all", "HEAD:params.yaml", ""):
        with pytest.raises(FlowersError, match="neither a git revision nor a DVC experiment"):
            find_commit(checkout.folder, name)


def test_a_name_that_two_experiments_have_is_refused(checkout, save):
    save("wise-owl")
    (ref,) = list_experiments(checkout.folder)
    checkout.git("update-ref", ref.replace(ref.split("/")[2], "00", 1), ref)
    with pytest.raises(FlowersError, match="2 DVC experiments"):
        find_commit(checkout.folder, "wise-owl")
