"""Tags that trace an MLflow run back to its code, its data and the Prefect run that started it."""

import os
from functools import cache
from pathlib import Path
from typing import Any

from contract import paths
from contract.documents import read_mapping
from contract.environment import PREFECT_RUN, PREFECT_RUN_ID
from contract.events import report
from contract.git import GitError, git


def read_lineage() -> dict[str, str]:
    """Return tags for the git commit, DVC's digests of data and dataset, and the Prefect run, as far as known."""
    lock = _read_yaml(paths.DVC_LOCK)
    pin = _read_yaml(paths.DATA_PIN)
    tags = _read_code() | {
        "dvc_data": pin.get("outs", [{}])[0].get("md5", ""),
        "dvc_dataset": _output_digest(lock, "preprocess", paths.DATASET),
        "prefect_flow_run": os.environ.get(PREFECT_RUN, ""),
        "prefect_flow_run_id": os.environ.get(PREFECT_RUN_ID, ""),
    }
    return {name: value for name, value in tags.items() if value}


def read_model_digest() -> str:
    """Return DVC's digest of build/model; empty where DVC has not recorded one."""
    return _output_digest(_read_yaml(paths.DVC_LOCK), "train", paths.MODEL)


def _output_digest(lock: dict[str, Any], stage: str, path: Path) -> str:
    outputs: list[dict[str, str]] = lock.get("stages", {}).get(stage, {}).get("outs", [])
    return next((output.get("md5", "") for output in outputs if output["path"] == str(path)), "")


def _read_yaml(path: Path) -> dict[str, Any]:
    return read_mapping(path) if path.is_file() else {}


def _read_code() -> dict[str, str]:
    """Return the tags for the code of the current folder; none without a repository, or where git cannot tell."""
    folder = Path.cwd()
    if not any((each / ".git").exists() for each in (folder, *folder.parents)):  # a copy without history
        return {}
    try:
        commit = git(folder, "rev-parse", "--verify", "HEAD")
        changes = git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except GitError as error:
        _warn_once(f"the MLflow run does not name the commit of the code: {error}")
        return {}
    return {"git_commit": commit, "git_has_local_changes": str(bool(changes)).lower()}


@cache
def _warn_once(text: str) -> None:
    report("warning", f"tracking: warning: {text}")
