"""What a run leaves on disk: checkpoints to go on from, and published models to draw from.

Both are safetensors files with JSON beside or inside them: nothing is ever unpickled.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpm.classes import ImageClass, labels_of
from ddpm.config import DiffusionConfig, Precision, SamplerName, UNetConfig
from ddpm.devices import drawing
from ddpm.diffusion import GaussianDiffusion, NoiseModel, build_diffusion
from ddpm.ema import ExponentialMovingAverage
from ddpm.files import atomic_path
from ddpm.guidance import guided, labels_in_turn
from ddpm.images import Pixels, to_pixels
from ddpm.samplers import ImageNoise, SamplerStep, sampler_steps
from ddpm.training_state import TrainingState
from ddpm.unet import UNet

_SHOWN_CHARACTERS = 40
"""Of a value, or of a digest, in an error."""

_FORMAT = 2
"""Raised where the same weights and configuration give other images: since 2, downsampling pads bottom and right."""

_CHECKPOINT_NAME = re.compile(r"step_(\d{9})\.safetensors")


class CheckpointError(Exception):
    """A checkpoint or model cannot be used; the message says which, why, and what to do."""


@dataclass(frozen=True)
class PublishedModel:
    """A trained network and all that is needed to draw from it."""

    unet: UNet
    diffusion: GaussianDiffusion
    image_size: int
    classes: tuple[ImageClass, ...] = ()
    """by label; none, where the network knows no classes"""
    label_dropout: float = 0.0
    """the share of images that it learnt without their class; above 0 it knows images of no class, too"""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what it draws."""
        return self.unet.config.image_channels, self.image_size, self.image_size

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return self.diffusion.betas.device

    def draw(
        self,
        n: int,
        *,
        seed: int = 0,
        sampler: SamplerName = "ddim",
        steps: int = 50,
        eta: float = 0.0,
        classes: Sequence[str | int] | None = None,
        guidance: float = 1.0,
        batch_size: int = 32,
        precision: Precision = "auto",
        on_step: Callable[[SamplerStep], object] | None = None,
    ) -> Pixels:
        """The first `n` images of a seed, uint8, on the CPU; image i depends on the seed and on i alone.

        Args:
            n: at least 1.
            seed: at least 0.
            sampler: "ddpm", "ddim" or "dpm_solver++"; see `ddpm.samplers`.
            steps: network calls an image, in 1 … T.
            eta: how much noise each step of "ddim" and "dpm_solver++" adds, in [0, 1].
            classes: see `asked`.
            guidance: see `ddpm.guidance.guided`.
            batch_size: images at a time; changes no image, but for the rounding of the arithmetic.
            precision: see `ddpm.devices`.
            on_step: told of each step of each batch; what it raises ends the drawing.

        Raises:
            ValueError: an argument lies outside its range.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        batches = []
        with drawing(self.unet, precision, self.device):
            for start in range(0, n, batch_size):
                numbers = range(start, min(start + batch_size, n))
                for step in self.steps(numbers, seed, sampler, steps, eta, classes, guidance):
                    x_t = step.x_t  # a list of all steps would keep a thousand images of each
                    if on_step is not None:
                        on_step(step)
                batches.append(to_pixels(x_t).cpu())
        return torch.cat(batches)

    def steps(
        self,
        image_numbers: Sequence[int],
        seed: int,
        sampler: SamplerName,
        num_sampling_steps: int,
        eta: float = 0.0,
        classes: Sequence[str | int] | None = None,
        guidance_scale: float = 1.0,
        network: nn.Module | None = None,
    ) -> Iterator[SamplerStep]:
        """A sampler's steps for the images of these numbers; see `draw` and `asked`.

        Raises:
            ValueError: an argument lies outside its range.
        """
        noise = ImageNoise(seed, image_numbers, self.image_shape, self.device)
        predict = self.asked(classes, image_numbers, guidance_scale, network)
        return sampler_steps(sampler, predict, self.diffusion, noise, num_sampling_steps, eta)

    def asked(
        self,
        classes: Sequence[str | int] | None,
        image_numbers: Sequence[int],
        guidance_scale: float = 1.0,
        network: nn.Module | None = None,
    ) -> NoiseModel:
        """The network as it draws the images of these numbers: guided to their classes, where it knows any.

        Args:
            classes: names or numbers, which the images have in turn: image i has the one of number i mod
                len(classes); None takes all that the network knows.
            image_numbers: of the images of a batch.
            guidance_scale: see `ddpm.guidance.guided`.
            network: in the place of `unet`, such as a compiled one.

        Raises:
            ValueError: a class is unknown, the network knows none at all, or the scale does not fit.
        """
        network = self.unet if network is None else network
        labels = labels_of(classes, self.classes)
        if not labels:
            if guidance_scale != 1.0:
                raise ValueError(f"the model knows no classes, so guidance_scale must be 1, got {guidance_scale}")
            return network
        if guidance_scale != 1.0 and self.label_dropout == 0.0:
            raise ValueError(
                "the model was trained without label dropout and knows no images without a class, so guidance_scale "
                f"must be 1, got {guidance_scale}"
            )
        on_device = labels_in_turn(labels, image_numbers).to(self.device)
        return guided(network, on_device, guidance_scale)


def fingerprint_of(experiment: Mapping[str, Any]) -> str:
    """The digest of everything that two trainings must share for one to go on from the other's checkpoint."""
    return hashlib.sha256(json.dumps(experiment, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """A training state as a checkpoint holds it."""

    step: int
    tensors: dict[str, Tensor]
    """by name; those of the state itself, on its device and in its order of memory"""
    metadata: dict[str, str]

    @classmethod
    def take(cls, state: TrainingState, experiment: Mapping[str, Any], notes: Mapping[str, Any]) -> "Snapshot":
        """Name all that makes up `state`; nothing is copied but Python's own values."""
        metadata = {
            "format": str(_FORMAT),
            "experiment": json.dumps(experiment),
            "step": str(state.step),
            "num_ema_updates": str(state.ema.num_updates),
            "notes": json.dumps(notes),
        }
        return cls(state.step, _state_tensors(state), metadata)

    def write(self, folder: Path, keep: int, keep_every: int | None) -> Path:
        """Write the file and remove old ones; see `save_checkpoint`."""
        path = checkpoint_path(folder, self.step)
        tensors = _contiguous(self.tensors)
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

    The training stands still meanwhile; `ddpm.checkpoint_writer` writes beside it.

    Args:
        folder: made if it is missing.
        state: after any step.
        experiment: parameters, data and code, as JSON; `load_checkpoint` refuses any other.
        notes: what the caller wants back, as JSON.
        keep: at least 1.
        keep_every: checkpoints at multiples of so many steps stay, too.
    """
    return Snapshot.take(state, experiment, notes).write(folder, keep, keep_every)


def load_checkpoint(path: Path, state: TrainingState, experiment: Mapping[str, Any]) -> dict[str, Any]:
    """Put what `save_checkpoint` wrote into `state`, and give its notes back.

    Raises:
        CheckpointError: the file is damaged, or belongs to another experiment; `state` is then as it was.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if metadata.pop("sha256", "") != _digest(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its bytes have not the digest that was written with them")
    if metadata.get("format") != str(_FORMAT):
        raise CheckpointError(
            f"{path} was written by another version, whose network computes something else with the same weights: "
            "train anew, or go on with the version that wrote it"
        )
    if differences := _differences(json.loads(metadata["experiment"]), json.loads(json.dumps(experiment))):
        raise CheckpointError(f"{path} belongs to another experiment: {'; '.join(differences)}")
    state.model.load_state_dict(_prefixed(tensors, "model."))
    for name, ema in _named_emas(state):
        ema.module.load_state_dict(_prefixed(tensors, f"{name}."))
        ema.num_updates = int(metadata["num_ema_updates"])
    _load_optimizer(state.optimizer, _prefixed(tensors, "optimizer."))
    state.step = int(metadata["step"])
    notes: dict[str, Any] = json.loads(metadata["notes"])
    return notes


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step_{step:09d}.safetensors"


def step_of(checkpoint: Path) -> int:
    """After how many steps a checkpoint was written, by its name."""
    return int(checkpoint.stem.removeprefix("step_"))


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _CHECKPOINT_NAME.fullmatch(path.name))


def publish_model(
    folder: Path,
    state: TrainingState,
    diffusion: DiffusionConfig,
    image_size: int,
    classes: Sequence[ImageClass] = (),
    label_dropout: float = 0.0,
) -> None:
    """Write the averaged weights, the raw ones and their configuration, as `load_model` reads them.

    A further moving average of decay 0.9999 becomes averaged_0.9999.

    Raises:
        ValueError: the network knows another number of classes.
    """
    networks = {"raw": state.model, "averaged": state.ema.module}
    networks |= {f"averaged_{ema.decay}": ema.module for ema in state.extra_emas}
    publish_weights(folder, networks, diffusion, image_size, classes, label_dropout)


def publish_weights(
    folder: Path,
    networks: Mapping[str, nn.Module],
    diffusion: DiffusionConfig,
    image_size: int,
    classes: Sequence[ImageClass] = (),
    label_dropout: float = 0.0,
) -> None:
    """Write the weights of several networks of one configuration, by name, as `load_model` reads them.

    Raises:
        ValueError: the networks know another number of classes.
    """
    unet = next(iter(networks.values()))
    assert isinstance(unet, UNet)
    _require_as_many(classes, unet)
    for name, network in networks.items():
        with atomic_path(folder / f"{name}.safetensors") as temporary:
            save_file(_contiguous(network.state_dict()), temporary)
    config = {
        "format": _FORMAT,
        "image_size": image_size,
        "unet": dataclasses.asdict(unet.config),
        "diffusion": dataclasses.asdict(diffusion),
        "classes": [dataclasses.asdict(each) for each in classes],
        "label_dropout": label_dropout if classes else 0.0,
    }
    with atomic_path(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def load_model(folder: Path | str, weights: str = "averaged", device: torch.device | str = "cpu") -> PublishedModel:
    """Load what `publish_model` wrote, ready to draw from.

    Args:
        folder: holds config.json and the weights.
        weights: "averaged" (what one samples from), "raw", "averaged_0.9999" for a further average of that decay, or
            "best", the averaged ones of the step that an evaluation during training found best.
        device: where the network goes.

    Raises:
        CheckpointError: a file is missing or damaged, or another version made the model.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / f"{weights}.safetensors")
    except (OSError, ValueError, SafetensorError) as error:  # not text, not JSON
        raise CheckpointError(f"{folder} holds no usable model: {error}; train one, or name its folder") from error
    try:
        _require_format(config.get("format"), folder)
        unet = UNet(UNetConfig.from_json(config["unet"]))
        unet.load_state_dict(tensors)
        diffusion = build_diffusion(DiffusionConfig(**config["diffusion"])).to(device)
        image_size = int(config["image_size"])
        classes = tuple(ImageClass(**each) for each in config["classes"])
        label_dropout = float(config["label_dropout"])
        _require_as_many(classes, unet)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}/config.json does not describe the weights beside it: {error}") from error
    unet = unet.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return PublishedModel(unet.eval().requires_grad_(False), diffusion, image_size, classes, label_dropout)


def _require_format(found: object, folder: Path) -> None:
    if found is None:
        raise CheckpointError(
            f"{folder} was made by an older version, whose downsampling padded on all sides, so that its weights would "
            "draw other images now: train it again, or draw with version 0.1.0"
        )
    if found != _FORMAT:
        raise CheckpointError(
            f"{folder} holds a model of format {_short(found)}, and this version draws format {_FORMAT}: draw "
            "with the version that made it"
        )


def _require_as_many(classes: Sequence[ImageClass], unet: UNet) -> None:
    if len(classes) != (unet.config.num_classes or 0):
        raise ValueError(f"{len(classes)} classes are named, and the network knows {unet.config.num_classes or 'none'}")


def _state_tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    for prefix, ema in _named_emas(state):
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in ema.module.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    return tensors


def _named_emas(state: TrainingState) -> list[tuple[str, ExponentialMovingAverage]]:
    return [("ema", state.ema), *((f"ema_{index}", ema) for index, ema in enumerate(state.extra_emas))]


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted({*saved, *wanted}):
        one, other = saved.get(name), wanted.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            found.append(f"{prefix}{name} was {_short(one)} and is {_short(other)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


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
