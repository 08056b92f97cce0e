"""What an MLflow run must name so that its images can be traced: code, data, and who ran it."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from contract.environment import PREFECT_RUN, PREFECT_RUN_ID


def lineage_tags() -> dict[str, str]:
    """Git commit, DVC digests of the data and the dataset, and the Prefect run if there is one."""
    lock = _yaml(Path("dvc.lock"))
    pin = _yaml(Path("data.dvc"))
    tags = {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_has_local_changes": str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower(),
        "dvc_data": pin.get("outs", [{}])[0].get("md5", ""),
        "dvc_dataset": _output_digest(lock, "preprocess", "build/dataset"),
        "prefect_flow_run": os.environ.get(PREFECT_RUN, ""),
        "prefect_flow_run_id": os.environ.get(PREFECT_RUN_ID, ""),
    }
    return {name: value for name, value in tags.items() if value}


def flow_run_name() -> str | None:
    """The name of the Prefect flow run, if there is one."""
    return os.environ.get(PREFECT_RUN) or None


def model_digest() -> str:
    """What DVC knows build/model by; empty where it has not recorded one."""
    return _output_digest(_yaml(Path("dvc.lock")), "train", "build/model")


def code_digest(*stage_sources: Path, without: Collection[str] = ()) -> str:
    """The digest of these files and of the modules of ddpm that this process has imported, but for those `without`."""
    digest = hashlib.sha256()
    for path in stage_sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] == "ddpm" and file and name not in without:
            digest.update(name.encode() + b"\0" + Path(file).read_bytes())
    return digest.hexdigest()


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
