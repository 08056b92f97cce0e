"""DVC experiments: the results of a run, saved as a commit that no branch holds.

DVC knows an experiment by its ref, refs/exps/BASELINE/NAME. It is written here as `dvc exp save` would write it, but
in one step. DVC itself goes through refs that all worktrees of a repository share (refs/exps/exec, refs/exps/stash):
two runs that end together, a `dvc exp run` in the checkout, or a kill in between would leave each other's refs behind.
"""

import re
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path

from ruamel.yaml import YAML

from contract.errors import FlowersError
from contract.git import GitError, git
from contract.paths import DATA_PIN, DVC_LOCK, PARAMS_FILE
from flows.workspaces.git import resolve_commit, try_git

STATE = (str(PARAMS_FILE), str(DVC_LOCK), str(DATA_PIN))
"""The files under git that a run changes."""

_NAMESPACE = "refs/exps"
_INTERNAL = {"exec", "stash", "apply", "celery", "temp"}  # refs of DVC's own, beside the experiments
_ABSENT = "0" * 40
_MAX_NAME_LENGTH = 100


def make_experiment_name(run_name: str) -> str:
    """Return a flow run's name in a form that git refs and folders accept."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", run_name).strip("-")[:_MAX_NAME_LENGTH].rstrip("-")
    return name or "run"


def number_names(name: str) -> Iterator[str]:
    """Yield the name, then name-2, name-3, … for where it is taken."""
    yield name
    yield from (f"{name}-{number}" for number in count(2))


def list_experiments(folder: Path) -> dict[str, str]:
    """Return each experiment's commit by its ref, newest first."""
    listed = git(folder, "for-each-ref", "--sort=-creatordate", "--format=%(refname) %(objectname)", _NAMESPACE)
    refs = dict(line.split(" ") for line in listed.splitlines())
    return {ref: commit for ref, commit in refs.items() if ref.split("/")[2] not in _INTERNAL}


def save_experiment(folder: Path, name: str) -> str:
    """Save parameters, lock and data pin of a worktree as an experiment on its HEAD; the bytes lie in the DVC cache.

    Returns:
        The experiment's name: `name`, followed by a number where git or DVC knows that name already.

    Raises:
        GitError: git refuses.
    """
    git(folder, "add", "--", *(path for path in STATE if (folder / path).is_file()))
    tree, baseline = git(folder, "write-tree"), git(folder, "rev-parse", "HEAD")
    message = f"dvc: commit experiment {tree}"
    commit = git(folder, "commit-tree", tree, "-p", baseline, "-m", message, environment=_name_committer(folder))
    while True:
        free = next(each for each in number_names(name) if not _is_taken(folder, each))
        try:
            git(folder, "update-ref", f"{_NAMESPACE}/{baseline[:2]}/{baseline[2:]}/{free}", commit, _ABSENT)
            return free
        except GitError:
            if not _is_taken(folder, free):  # else another run has taken it just now
                raise


def keep_stages(lock: Path, stages: Collection[str]) -> None:
    """Remove all other stages from a dvc.lock: an experiment would show their metrics as its own."""
    yaml = YAML()
    document = yaml.load(lock.read_text())
    document["stages"] = {name: entry for name, entry in document["stages"].items() if name in stages}
    with lock.open("w") as file:
        yaml.dump(document, file)


def find_commit(folder: Path, revision: str) -> str:
    """Return the commit of a git revision or of an experiment.

    Raises:
        FlowersError: there is none, or several experiments have that name.
    """
    if commit := resolve_commit(folder, revision):
        return commit
    found = [commit for ref, commit in list_experiments(folder).items() if ref.rpartition("/")[2] == revision]
    if len(found) == 1:
        return found[0]
    problem = f"the name of {len(found)} DVC experiments" if found else "neither a git revision nor a DVC experiment"
    raise FlowersError(
        f"revision {revision!r} is {problem}; `dvc exp list --all-commits` lists the experiments, `git log` the "
        "commits, and the digest of a commit is never ambiguous"
    )


def _is_taken(folder: Path, name: str) -> bool:
    names = {ref.rpartition("/")[2] for ref in list_experiments(folder)}
    return name in names or resolve_commit(folder, name) is not None


def _name_committer(folder: Path) -> dict[str, str]:
    """Return variables that name an author where git knows none: a service's account may have no name."""
    roles = ("AUTHOR", "COMMITTER")
    if all(try_git(folder, "var", f"GIT_{role}_IDENT") for role in roles):
        return {}
    identity = {"NAME": "flowers-ddpm", "EMAIL": "flowers-ddpm@localhost"}
    return {f"GIT_{role}_{part}": value for role in roles for part, value in identity.items()}
