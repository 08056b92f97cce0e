"""Going on from a checkpoint of the same experiment."""

import torch

from contract.errors import StageError
from ddpm.checkpoint import CheckpointError, fingerprint_of, list_checkpoints, load_checkpoint, step_of
from ddpm.distributed import collect, is_first
from stages.runtime.reporting import say
from stages.training.experiment import Experiment, Recording
from stages.training.others import warn_of_near_one


def resume(experiment: Experiment) -> None:
    """Go on from the newest checkpoint that can be read, if there is one.

    Raises:
        StageError: several processes find different checkpoints, or have different experiments.
    """
    num_steps = experiment.params.num_steps
    if is_first():
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
    if is_first() and experiment.state.step == 0:
        warn_of_near_one(experiment)
    _check_agreement(experiment)


def _check_agreement(experiment: Experiment) -> None:
    identity = int(fingerprint_of(experiment.identity)[:15], 16)
    together = collect(torch.tensor([[experiment.state.step, identity]])).tolist()
    steps, identities = zip(*together, strict=True)
    if len(set(identities)) > 1:
        raise StageError("the processes disagree on parameters, data or code: all machines need the same checkout")
    if len(set(steps)) > 1:
        raise StageError(
            f"the processes would go on from different steps, {list(steps)}: {experiment.folder} must be the same "
            "folder on all machines"
        )
