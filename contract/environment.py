"""Environment variables of the project, each named once."""

import os
from collections.abc import Mapping
from pathlib import Path

EVENTS = "DDPM_EVENTS"
"""File to which a stage appends its events for the task that started it; unset, a stage prints for people."""

WATCH_PID = "DDPM_WATCH_PID"
"""Id of the process whose death ends the stage; set by the task that started it."""

PREFECT_RUN = "DDPM_PREFECT_FLOW_RUN"
"""Name of the Prefect flow run that started the stage, such as "wise-owl"."""

PREFECT_RUN_ID = "DDPM_PREFECT_FLOW_RUN_ID"
"""Id of that flow run."""

SWEEP = "DDPM_SWEEP"
"""Name of the sweep that the flow run belongs to."""

TRACKING = "DDPM_TRACKING"
"""The value "off" switches MLflow off."""

TRACKING_URI = "MLFLOW_TRACKING_URI"
"""Address of MLflow's store or server."""

REGISTRY_URI = "MLFLOW_REGISTRY_URI"
"""Address of MLflow's registry of models, where it is another one."""

CHECKOUT = "DDPM_CHECKOUT"
"""Folder of the project for which a run works in a worktree: places relative to it stay there."""

MLFLOW_PAGES = "DDPM_MLFLOW_PAGES"
"""Address of MLflow for browsers, where it differs from the one that programs on this machine use."""

GPU_SLOTS = "DDPM_GPU_SLOTS"
"""Number of stage processes that may compute at once on this machine, at most one per GPU; unset, one per GPU, or one
without a GPU."""

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
"""Names of the GPUs that a process sees; unset, it sees all."""

SLOTS_FOLDER = "DDPM_SLOTS_FOLDER"
"""Folder of the lock files of GPU slots, the same for all runs of this machine; unset, one in the user's home."""


def is_tracked() -> bool:
    """Return whether runs are recorded in MLflow."""
    return os.environ.get(TRACKING) != "off"


_REPOSITORY = frozenset({
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_ATTR_SOURCE", "GIT_COMMON_DIR", "GIT_DIR", "GIT_GLOB_PATHSPECS",
    "GIT_GRAFT_FILE", "GIT_ICASE_PATHSPECS", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_LITERAL_PATHSPECS", "GIT_NAMESPACE", "GIT_NOGLOB_PATHSPECS", "GIT_NO_REPLACE_OBJECTS", "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX", "GIT_QUARANTINE_PATH", "GIT_REPLACE_REF_BASE", "GIT_SHALLOW_FILE", "GIT_WORK_TREE",
})  # fmt: skip
"""Variables by which git tells its hooks where a repository and its index lie, and how to read paths in it."""


def leave_repository() -> None:
    """Forget the repository that a git hook names: this process and its children look in their own folder."""
    for name in _REPOSITORY & os.environ.keys():
        del os.environ[name]


def without_repository(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the repository that a git hook names; identity and configuration stay."""
    return {name: value for name, value in environment.items() if name not in _REPOSITORY}


def find_project() -> Path:
    """Return the folder of the project, also where a run works in a worktree, or DVC in a copy."""
    return Path(os.environ.get(CHECKOUT) or os.environ.get("DVC_ROOT") or ".").absolute()


def process_number() -> int:
    """Return the number of this process among those of its stage, as torchrun numbers them; 0, if it works alone."""
    rank = os.environ.get("RANK", "")
    return int(rank) if "WORLD_SIZE" in os.environ and rank.isascii() and rank.isdecimal() else 0


def work_alone() -> None:
    """Make this process the only one of its stage, whatever a batch system has set."""
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def is_first_process() -> bool:
    """Return whether this is the first, or the only, process of a stage."""
    return process_number() == 0
