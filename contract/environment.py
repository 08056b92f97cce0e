"""Environment variables of the project, each named once."""

import os

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

MLFLOW_PAGES = "DDPM_MLFLOW_PAGES"
"""Address of MLflow for browsers, where it differs from the one that programs on this machine use."""

GPU_SLOTS = "DDPM_GPU_SLOTS"
"""Number of stage processes that may compute at once on this machine, at most one per GPU; unset, one per GPU, or one
without a GPU."""

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
"""Names of the GPUs that a process sees; unset, it sees all."""

SLOTS_FOLDER = "DDPM_SLOTS_FOLDER"
"""Folder of the lock files of GPU slots, the same for all runs of this machine; unset, one in the user's home."""


def process_number() -> int:
    """Return the number of this process among those of its stage; torchrun numbers them in RANK."""
    return int(os.environ.get("RANK", "0"))


def is_first_process() -> bool:
    """Return whether this is the first, or the only, process of a stage."""
    return process_number() == 0
