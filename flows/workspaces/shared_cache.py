"""What a worktree shares with its checkout: DVC's cache and remotes, and the data that they hold."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.workspaces.experiments import list_experiments
from flows.workspaces.git import file_in

_PIN = "data.dvc"


class NotCachedError(Exception):
    """The DVC cache does not hold what is needed; the message says what, and what to do."""


def share_cache(checkout: Path, worktree: Path) -> None:
    """Let DVC in `worktree` use the cache and the settings of `checkout`, also those that git does not know.

    Relative paths, of remotes for instance, go on meaning what they mean in the checkout. What DVC remembers of files
    lies within the worktree, and goes with it.
    """
    from dvc.config import Config, merge

    theirs = Config(str(checkout / ".dvc"))
    with Config(str(worktree / ".dvc")).edit("local") as settings:
        merge(settings, theirs.load_one("repo"))
        merge(settings, theirs.load_one("local"))
        settings["cache"]["dir"] = theirs["cache"].get("dir") or str(checkout / ".dvc" / "cache")
        settings["core"]["site_cache_dir"] = str(worktree / ".dvc" / "tmp" / "site")


def bring_raw_data(checkout: Path, worktree: Path, wanted: Mapping[str, Any]) -> None:
    """Put raw data that were made with the same parameters into `worktree`, where the cache holds them.

    Those of the last commit come with their receipt, so that the download stage has nothing to do, as in the checkout;
    others it verifies. It fetches what is missing.

    Args:
        checkout: whose pin may be newer than the last commit.
        worktree: where the flow runs.
        wanted: section `download` of the parameters.
    """
    committed = file_in(worktree, "HEAD", _PIN)
    for pin in _pins(checkout, worktree):
        if (YAML(typ="safe").load(pin) or {}).get("meta", {}).get("download") == wanted:
            (worktree / _PIN).write_text(pin)
            _dvc(worktree, "checkout", "--quiet", "--allow-missing", _PIN)
            if (worktree / "data").is_dir():
                if pin == committed:
                    _dvc(worktree, "checkout", "--quiet", "--allow-missing", "download")
                return


def bring_outputs(worktree: Path, needed: Mapping[str, str], stages: Sequence[str]) -> None:
    """Put the outputs of `stages` that dvc.lock names into `worktree`, from the cache, or from the default remote.

    Args:
        worktree: where the flow runs.
        needed: the outputs that cannot be done without, each with what it is called.
        stages: in dvc.yaml.

    Raises:
        NotCachedError: one of those is in neither.
    """
    _dvc(worktree, "checkout", "--quiet", "--allow-missing", *stages)
    missing = [path for path in needed if not (worktree / path).exists()]
    said = ""
    if missing:  # without a remote, DVC says so
        said = _dvc(worktree, "pull", "--quiet", *missing).strip()
        missing = [path for path in missing if not (worktree / path).exists()]
    if missing:
        names = " and ".join(f"{needed[path]} ({path})" for path in missing)
        raise NotCachedError(
            f"the DVC cache does not hold {names}; `dvc pull` brings it from a remote that has it, and the pipeline "
            f"makes it anew. DVC says: {said.splitlines()[-1] if said else 'nothing'}"
        )


def _pins(checkout: Path, worktree: Path) -> Iterator[str]:
    """data.dvc as it is known: of the commit, of the checkout, of the experiments."""
    for folder in (worktree, checkout):
        if (folder / _PIN).is_file():
            yield (folder / _PIN).read_text()
    for commit in list_experiments(checkout).values():
        if pin := file_in(checkout, commit, _PIN):
            yield pin


def _dvc(worktree: Path, *arguments: str) -> str:
    """All that a DVC command says, whether it succeeds or not."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(
        command,
        cwd=worktree,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout
