"""What an MLflow run must name so that its images can be traced: code, data, and who ran it."""

import os
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PREFECT_RUN_VARIABLE = "DDPM_PREFECT_FLOW_RUN"
"""Name and id of the Prefect flow run, "wise-owl (0a1b…)", set by the flow that started the stage."""

SWEEP_VARIABLE = "DDPM_SWEEP"
"""Name of the sweep that the flow run belongs to, set likewise."""


def lineage_tags() -> dict[str, str]:
    """Git commit, DVC digests of the data and the dataset, and the Prefect run if there is one."""
    lock = _yaml(Path("dvc.lock"))
    pin = _yaml(Path("data.dvc"))
    tags = {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_has_local_changes": str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower(),
        "dvc_data": pin.get("outs", [{}])[0].get("md5", ""),
        "dvc_dataset": _output_digest(lock, "preprocess", "build/dataset"),
        "prefect_flow_run": os.environ.get(PREFECT_RUN_VARIABLE, ""),
    }
    return {name: value for name, value in tags.items() if value}


def flow_run_name() -> str | None:
    """The name of the Prefect flow run, if there is one."""
    return os.environ.get(PREFECT_RUN_VARIABLE, "").partition(" (")[0] or None


def model_digest() -> str:
    """What DVC knows build/model by; empty where it has not recorded one."""
    return _output_digest(_yaml(Path("dvc.lock")), "train", "build/model")


def _output_digest(lock: dict[str, Any], stage: str, path: str) -> str:
    outputs: list[dict[str, str]] = lock.get("stages", {}).get(stage, {}).get("outs", [])
    return next((output.get("md5", "") for output in outputs if output["path"] == path), "")


def _yaml(path: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(path) if path.is_file() else {}


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy without history: the tag stays away
        return ""
    return result.stdout.strip()
