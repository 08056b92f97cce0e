"""Checkpoints: a training's whole state as one safetensors file with JSON inside; nothing is ever unpickled."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddpm.distributed import is_first, take_from_first, world_size
from ddpm.ema import ExponentialMovingAverage
from ddpm.files import atomic_path
from ddpm.training_state import TrainingState

FORMAT = 2
"""Version of the network's arithmetic in checkpoints and published models; raised when the same weights and
configuration come to draw other images. Since 2, downsampling pads bottom and right."""

_CHECKPOINT_NAME = re.compile(r"step_(\d{9})\.safetensors")
_MAX_SHOWN_CHARACTERS = 40


class CheckpointError(Exception):
    """A checkpoint or model cannot be used; the message says which, why, and what to do."""


def fingerprint_of(experiment: Mapping[str, Any]) -> str:
    """Return the digest of all that two trainings must share for one to go on from the other's checkpoint."""
    return hashlib.sha256(json.dumps(experiment, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """A training state in the form of a checkpoint."""

    step: int
    tensors: dict[str, Tensor]
    """tensors by name: those of the state itself, on its device and in its order of memory"""
    metadata: dict[str, str]

    @classmethod
    def capture(cls, state: TrainingState, experiment: Mapping[str, Any], notes: Mapping[str, Any]) -> "Snapshot":
        """Name all parts of `state`; only Python's own values are copied."""
        metadata = {
            "format": str(FORMAT),
            "experiment": json.dumps(experiment),
            "step": str(state.step),
            "num_ema_updates": str(state.ema.num_updates),
            "notes": json.dumps(notes),
        }
        return cls(state.step, _name_tensors(state), metadata)

    def write(self, folder: Path, keep: int, keep_every: int | None) -> Path:
        """Write the file and remove old ones; see `save_checkpoint`."""
        path = checkpoint_path(folder, self.step)
        tensors = to_row_major(self.tensors)
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, self.metadata | {"sha256": _digest(tensors, self.metadata)})
        # Newer ones are of a longer training, which this one does not go on from.
        for old in [one for one in list_checkpoints(folder) if step_of(one) <= self.step][:-keep]:
            if keep_every is None or step_of(old) % keep_every != 0:
                old.unlink()
        return path


def save_checkpoint(
    folder: Path,
    state: TrainingState,
    experiment: Mapping[str, Any],
    notes: Mapping[str, Any],
    keep: int,
    keep_every: int | None = None,
) -> Path:
    """Write `state` atomically as step_NNNNNNNNN.safetensors, then remove all but the newest `keep`.

    The training stands still meanwhile; `ddpm.checkpoint_writer` writes in the background.

    Args:
        folder: made if it is missing.
        state: after any step.
        experiment: parameters, data and code, as JSON; `load_checkpoint` refuses any other.
        notes: the caller's own values, as JSON; `load_checkpoint` returns them.
        keep: at least 1.
        keep_every: checkpoints whose step is a multiple of it stay, too.
    """
    return Snapshot.capture(state, experiment, notes).write(folder, keep, keep_every)


def load_checkpoint(path: Path, state: TrainingState, experiment: Mapping[str, Any]) -> dict[str, Any]:
    """Put a checkpoint into `state`.

    Returns:
        The notes that were saved with it.

    Raises:
        CheckpointError: the file is damaged, or belongs to another experiment; `state` is then unchanged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if metadata.pop("sha256", "") != _digest(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its digest does not match its bytes")
    if metadata.get("format") != str(FORMAT):
        raise CheckpointError(
            f"{path} was written by another version, whose network computes something else with the same weights: "
            "train anew, or go on with the version that wrote it"
        )
    if differences := _list_differences(json.loads(metadata["experiment"]), json.loads(json.dumps(experiment))):
        raise CheckpointError(f"{path} belongs to another experiment: {'; '.join(differences)}")
    return _restore(state, tensors, metadata)


def share_state(state: TrainingState, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Put the first process's state into that of every other one, to the bit; return its notes.

    Only the first needs to see the folder of the checkpoints then, which other machines may not.
    """
    if world_size() == 1:
        return dict(notes)
    snapshot = Snapshot.capture(state, {}, notes)
    tensors, metadata = take_from_first(to_row_major(snapshot.tensors), snapshot.metadata)
    return dict(notes) if is_first() else _restore(state, tensors, metadata)


def read_experiment(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its experiment, without reading its tensors.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            experiment: dict[str, Any] = json.loads(file.metadata()["experiment"])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return experiment


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"step_{step:09d}.safetensors"


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written, by its name."""
    return int(checkpoint.stem.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _CHECKPOINT_NAME.fullmatch(path.name))


def to_row_major(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors to the CPU in row-major order, which safetensors needs; networks are channels-last."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def abbreviate(value: Any) -> str:
    """Show a value in an error message, cut after 40 characters of JSON."""
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[:_MAX_SHOWN_CHARACTERS]}…"


def _restore(state: TrainingState, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    state.model.load_state_dict(_select(tensors, "model."))
    for name, ema in _name_emas(state):
        ema.module.load_state_dict(_select(tensors, f"{name}."))
        ema.num_updates = int(metadata["num_ema_updates"])
    _load_optimizer(state.optimizer, _select(tensors, "optimizer."))
    state.step = int(metadata["step"])
    notes: dict[str, Any] = json.loads(metadata["notes"])
    return notes


def _name_tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    for prefix, ema in _name_emas(state):
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in ema.module.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    return tensors


def _name_emas(state: TrainingState) -> list[tuple[str, ExponentialMovingAverage]]:
    return [("ema", state.ema), *((f"ema_{index}", ema) for index, ema in enumerate(state.extra_emas))]


def _select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _list_differences(saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    differences = []
    for name in sorted({*saved, *current}):
        one, other = saved.get(name), current.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            differences += _list_differences(one, other, f"{prefix}{name}.")
        elif one != other:
            differences.append(f"{prefix}{name} was {abbreviate(one)} and is {abbreviate(other)}")
    return differences


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, moment = name.split(".")
        moments.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    # The fused Adam walks weights and moments in one order of memory, and silently reads the wrong numbers where
    # channels-last weights meet row-major moments.
    for parameter, loaded in optimizer.state.items():
        for name, moment in loaded.items():
            if moment.shape == parameter.shape:
                loaded[name] = torch.empty_like(parameter).copy_(moment)
