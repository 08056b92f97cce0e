"""Parts that a worktree shares with its checkout: DVC's cache and remotes, and the data in them."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from contract.errors import FlowersError
from contract.paths import DATA, DATA_PIN
from flows.workspaces.experiments import list_experiments
from flows.workspaces.git import read_file_at

_PIN = str(DATA_PIN)


def share_cache(checkout: Path, worktree: Path) -> None:
    """Let DVC in `worktree` use the cache and the settings of `checkout`, including those that git does not know.

    Relative paths, of remotes for instance, keep the meaning that they have in the checkout. DVC's records about files
    lie inside the worktree and are removed with it.
    """
    from dvc.config import Config, merge
    from dvc.config_schema import RelPath

    theirs, folder = Config(str(checkout.resolve() / ".dvc")), worktree.resolve()  # which may lie on another disk
    try:
        with Config(str(folder / ".dvc")).edit("local") as settings:
            merge(settings, theirs.load_one("repo"))
            merge(settings, theirs.load_one("local"))
            # DVC writes these in ASCII alone: paths are relative, so that the name of the checkout's folder may be any.
            settings["cache"]["dir"] = RelPath(theirs["cache"].get("dir") or checkout.resolve() / ".dvc" / "cache")
            settings["core"]["site_cache_dir"] = ".dvc/tmp/site"
    except UnicodeEncodeError as error:
        raise FlowersError(
            f"DVC cannot name {error.object!r} in the settings of a worktree: use a path of ASCII letters for the "
            "cache, the remotes and workspaces/"
        ) from None


def bring_raw_data(checkout: Path, worktree: Path, params: Mapping[str, Any]) -> None:
    """Put raw data that were made with the same parameters into `worktree`, if the cache holds them.

    Data of the last commit come with their receipt, so that the download stage has nothing to do, as in the checkout.
    The stage verifies other data, and fetches what is missing.

    Args:
        checkout: folder whose pin may be newer than the last commit.
        worktree: where the flow runs.
        params: section `download` of the parameters.
    """
    committed = read_file_at(worktree, "HEAD", _PIN)
    for pin in _list_pins(checkout, worktree):
        if (YAML(typ="safe").load(pin) or {}).get("meta", {}).get("download") == params:
            (worktree / DATA_PIN).write_text(pin)
            _run_dvc(worktree, "checkout", "--quiet", "--allow-missing", _PIN)
            if (worktree / DATA).is_dir():
                if pin == committed:
                    _run_dvc(worktree, "checkout", "--quiet", "--allow-missing", "download")
                return


def bring_outputs(worktree: Path, required: Mapping[Path, str], stages: Sequence[str]) -> None:
    """Put the outputs of `stages` that dvc.lock names into `worktree`, from the cache or the default remote.

    Args:
        worktree: where the flow runs.
        required: outputs that must be there, mapped to display names.
        stages: names of stages in dvc.yaml.

    Raises:
        FlowersError: a required output is in neither.
    """
    _run_dvc(worktree, "checkout", "--quiet", "--allow-missing", *stages)
    missing = [path for path in required if not (worktree / path).exists()]
    output = ""
    if missing:  # without a remote, DVC says so
        output = _run_dvc(worktree, "pull", "--quiet", *map(str, missing)).strip()
        missing = [path for path in missing if not (worktree / path).exists()]
    if missing:
        names = " and ".join(f"{required[path]} ({path})" for path in missing)
        raise FlowersError(
            f"the DVC cache does not hold {names}; `dvc pull` fetches it from a remote that has it, and the pipeline "
            f"makes it again. DVC says: {output.splitlines()[-1] if output else 'nothing'}"
        )


def _list_pins(checkout: Path, worktree: Path) -> Iterator[str]:
    """Yield the known versions of data.dvc: of the commit, of the checkout, of the experiments."""
    for folder in (worktree, checkout):
        if (folder / DATA_PIN).is_file():
            yield (folder / DATA_PIN).read_text()
    for commit in list_experiments(checkout).values():
        if pin := read_file_at(checkout, commit, _PIN):
            yield pin


def _run_dvc(worktree: Path, *arguments: str) -> str:
    """Run a DVC command and return all that it prints, whether it succeeds or not."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=worktree,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout
