"""What a run leaves on disk: checkpoints to go on from, and published models to draw from.

Both are safetensors files with JSON beside or inside them: nothing is ever unpickled.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm.diffusion import GaussianDiffusion, Prediction
from ddpm.files import atomic_path
from ddpm.schedules import ScheduleName, make_betas
from ddpm.training import TrainingState
from ddpm.unet import UNet, UNetConfig

Weights = Literal["averaged", "raw"]

_CHECKPOINT_NAME = re.compile(r"step_(\d{9})\.safetensors")


class CheckpointError(Exception):
    """A checkpoint or model cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class DiffusionConfig:
    """A noise schedule by name, and what the network predicts; see `ddpm.schedules` and `ddpm.diffusion`."""

    schedule: ScheduleName = "linear"
    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction: Prediction = "eps"

    def build(self) -> GaussianDiffusion:
        """The diffusion with this schedule."""
        betas = make_betas(self.schedule, self.num_timesteps, self.beta_start, self.beta_end)
        return GaussianDiffusion(betas, self.prediction)


@dataclass(frozen=True)
class PublishedModel:
    """A trained network and all that is needed to draw from it."""

    unet: UNet
    diffusion: GaussianDiffusion
    image_size: int


def save_checkpoint(folder: Path, state: TrainingState, fingerprint: str, notes: Mapping[str, Any], keep: int) -> Path:
    """Write `state` atomically as step_NNNNNNNNN.safetensors, then remove all but the newest `keep`.

    Args:
        folder: made if it is missing.
        state: after any step.
        fingerprint: of the experiment; `load_checkpoint` refuses any other.
        notes: what the caller wants back, as JSON.
        keep: at least 1.
    """
    path = folder / f"step_{state.step:09d}.safetensors"
    metadata = {
        "fingerprint": fingerprint,
        "step": str(state.step),
        "num_ema_updates": str(state.ema.num_updates),
        "notes": json.dumps(notes),
    }
    with atomic_path(path) as temporary:
        save_file(_state_tensors(state), temporary, metadata)
    for old in list_checkpoints(folder)[:-keep]:
        if old != path:  # another experiment may have left newer ones
            old.unlink()
    return path


def load_checkpoint(path: Path, state: TrainingState, fingerprint: str) -> dict[str, Any]:
    """Put what `save_checkpoint` wrote into `state`, and give its notes back.

    Raises:
        CheckpointError: the file is damaged, or belongs to another experiment.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if metadata["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path} belongs to another experiment (fingerprint {metadata['fingerprint'][:12]}, this one is "
            f"{fingerprint[:12]}): its parameters, data or code differ"
        )
    state.model.load_state_dict(_prefixed(tensors, "model."))
    state.ema.module.load_state_dict(_prefixed(tensors, "ema."))
    state.ema.num_updates = int(metadata["num_ema_updates"])
    _load_optimizer(state.optimizer, _prefixed(tensors, "optimizer."))
    state.step = int(metadata["step"])
    notes: dict[str, Any] = json.loads(metadata["notes"])
    return notes


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _CHECKPOINT_NAME.fullmatch(path.name))


def publish_model(folder: Path, state: TrainingState, diffusion: DiffusionConfig, image_size: int) -> None:
    """Write the averaged weights, the raw ones and their configuration, as `load_model` reads them."""
    unet = state.model
    assert isinstance(unet, UNet)
    for name, module in (("averaged", state.ema.module), ("raw", unet)):
        with atomic_path(folder / f"{name}.safetensors") as temporary:
            save_file(_contiguous(module.state_dict()), temporary)
    config = {
        "image_size": image_size,
        "unet": dataclasses.asdict(unet.config),
        "diffusion": dataclasses.asdict(diffusion),
    }
    with atomic_path(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def load_model(folder: Path, weights: Weights = "averaged", device: torch.device | str = "cpu") -> PublishedModel:
    """Load what `publish_model` wrote, ready to draw from.

    Args:
        folder: holds config.json and the weights.
        weights: "averaged" (what one samples from) or "raw".
        device: where the network goes.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / f"{weights}.safetensors")
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no usable model: {error}; train one, or name its folder") from error
    unet_fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config["unet"].items()
    }
    unet = UNet(UNetConfig(**unet_fields))
    unet.load_state_dict(tensors)
    unet = unet.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    diffusion = DiffusionConfig(**config["diffusion"]).build().to(device)
    return PublishedModel(unet.eval().requires_grad_(False), diffusion, config["image_size"])


def _state_tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in state.ema.module.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    return _contiguous(tensors)


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, moment = name.split(".")
        moments.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    # The fused Adam walks weights and moments by one order of memory, and reads the wrong numbers, without a word,
    # where channels-last weights meet row-major moments.
    for parameter, loaded in optimizer.state.items():
        for name, moment in loaded.items():
            if moment.shape == parameter.shape:
                loaded[name] = torch.empty_like(parameter).copy_(moment)


def _prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors stores plain row-major arrays; the networks themselves are channels-last.
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
