"""Going on from a checkpoint of the same experiment."""

from dataclasses import asdict

import torch

from contract.errors import StageError
from ddpm.checkpoint import (
    CheckpointError,
    fingerprint_of,
    list_checkpoints,
    load_checkpoint,
    share_state,
    step_of,
)
from ddpm.distributed import collect, is_first
from stages.runtime.reporting import say
from stages.training.experiment import Experiment, Recording
from stages.training.other_trainings import warn_of_near_one


def resume(experiment: Experiment) -> None:
    """Go on from the newest checkpoint that the first process can read, if there is one.

    The other processes get its state from there: their machines need not see its folder.

    Raises:
        StageError: the processes have different experiments.
    """
    _check_agreement(experiment)
    if is_first():
        _load_newest(experiment)
        if experiment.state.step == 0:
            warn_of_near_one(experiment)
    if collect(torch.tensor([experiment.state.step])).any():
        experiment.recording = Recording(**share_state(experiment.state, asdict(experiment.recording)))


def _load_newest(experiment: Experiment) -> None:
    num_steps = experiment.params.num_steps
    for pattern in (".*.tmp.safetensors", ".tmp??????"):  # from a process killed while saving: ours, safetensors'
        for left_over in experiment.folder.glob(pattern):
            left_over.unlink()
    for path in reversed(list_checkpoints(experiment.folder)):
        if step_of(path) > num_steps:
            continue
        try:
            notes = load_checkpoint(path, experiment.state, experiment.identity)
        except CheckpointError as error:
            say("train", f"{error}; going back to the one before it")
            continue
        experiment.recording = Recording(**notes)
        finished = f"{path} holds this very training, finished; nothing is left to train"
        say("train", finished if experiment.state.step == num_steps else f"going on from {path}")
        break


def _check_agreement(experiment: Experiment) -> None:
    identity = int(fingerprint_of(experiment.identity)[:15], 16)
    if len(set(collect(torch.tensor([identity])).tolist())) > 1:
        raise StageError("the processes disagree on parameters, data or code: all machines need the same checkout")
