"""Published models: a trained network and all that is needed to draw from it, as safetensors and JSON."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ddpm.checkpoint import FORMAT, CheckpointError, abbreviate, to_row_major
from ddpm.classes import AskedClass, ImageClass, labels_of
from ddpm.config import DiffusionConfig, Precision, SamplerName, SamplingConfig, UNetConfig
from ddpm.devices import drawing
from ddpm.diffusion import GaussianDiffusion, NoiseModel, build_diffusion
from ddpm.files import atomic_path
from ddpm.guidance import guided, labels_in_turn
from ddpm.images import Pixels, to_pixels
from ddpm.samplers import ImageNoise, SamplerStep, sampler_steps
from ddpm.training_state import TrainingState
from ddpm.unet import UNet


@dataclass(frozen=True)
class PublishedModel:
    """A trained network and all that is needed to draw from it."""

    unet: UNet
    diffusion: GaussianDiffusion
    image_size: int
    classes: tuple[ImageClass, ...] = ()
    """classes by label; empty, if the network knows no classes"""
    label_dropout: float = 0.0
    """share of images that the network has seen without their class; above 0 it can draw images of no class, too"""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.unet.config.image_channels, self.image_size, self.image_size

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.diffusion.betas.device

    def draw(
        self,
        n: int | range,
        *,
        seed: int = SamplingConfig.seed,
        sampler: SamplerName = SamplingConfig.sampler,
        steps: int = SamplingConfig.num_sampling_steps,
        eta: float = SamplingConfig.eta,
        classes: Sequence[AskedClass] | None = SamplingConfig.classes,
        guidance: float = SamplingConfig.guidance_scale,
        batch_size: int = 32,
        precision: Precision = SamplingConfig.precision,
        on_step: Callable[[SamplerStep], object] | None = None,
    ) -> Pixels:
        """Draw images of a seed; image i depends on the seed and on i alone.

        Args:
            n: number of images, at least 1, to draw the first ones; or the numbers of the images, such as the share of
                one of several processes; of an empty range nothing is drawn or checked.
            seed: at least 0.
            sampler: "ddpm", "ddim" or "dpm_solver++"; see `ddpm.samplers`.
            steps: network calls per image, in 1 … T.
            eta: amount of noise that each step of "ddim" and "dpm_solver++" adds, in [0, 1].
            classes: see `bind_classes`.
            guidance: see `ddpm.guidance.guided`.
            batch_size: images per network call; it changes the images by rounding alone.
            precision: see `ddpm.devices`.
            on_step: called after each step of each batch; an exception from it ends the drawing.

        Returns:
            Images as bytes, on the CPU.

        Raises:
            ValueError: an argument lies outside its range.
        """
        if not isinstance(n, range) and n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        numbers = n if isinstance(n, range) else range(n)
        batches = [torch.empty(0, *self.image_shape, dtype=torch.uint8)]
        with drawing(self.unet, precision, self.device):
            for start in range(0, len(numbers), batch_size):
                batch = numbers[start : start + batch_size]
                for step in self.steps(batch, seed, sampler, steps, eta, classes, guidance):
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
        classes: Sequence[AskedClass] | None = None,
        guidance_scale: float = 1.0,
        network: nn.Module | None = None,
    ) -> Iterator[SamplerStep]:
        """Yield a sampler's steps for the images with these numbers; see `draw` and `bind_classes`.

        Raises:
            ValueError: an argument lies outside its range.
        """
        noise = ImageNoise(seed, image_numbers, self.image_shape, self.device)
        predict = self.bind_classes(classes, image_numbers, guidance_scale, network)
        return sampler_steps(sampler, predict, self.diffusion, noise, num_sampling_steps, eta)

    def bind_classes(
        self,
        classes: Sequence[AskedClass] | None,
        image_numbers: Sequence[int],
        guidance_scale: float = 1.0,
        network: nn.Module | None = None,
    ) -> NoiseModel:
        """Return the network bound to the classes of a batch, and guided to them; as it is, if it knows no classes.

        Args:
            classes: names or numbers, taken in turn: image i is of the one at position i mod len(classes); None takes
                all classes that the network knows.
            image_numbers: numbers of the images of the batch.
            guidance_scale: see `ddpm.guidance.guided`.
            network: called instead of `unet`, such as a compiled copy of it.

        Raises:
            ValueError: a class is unknown, the network knows no classes, or the scale does not fit the network.
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
        return guided(network, labels_in_turn(labels, image_numbers).to(self.device), guidance_scale)


def publish_model(
    folder: Path,
    state: TrainingState,
    diffusion: DiffusionConfig,
    image_size: int,
    classes: Sequence[ImageClass] = (),
    label_dropout: float = 0.0,
) -> None:
    """Write the averaged weights, the raw ones and their configuration for `load_model`.

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
    """Write the weights of named networks of one configuration for `load_model`.

    Raises:
        ValueError: the networks know another number of classes.
    """
    unet = next(iter(networks.values()))
    assert isinstance(unet, UNet)
    _check_num_classes(classes, unet)
    for name, network in networks.items():
        with atomic_path(folder / f"{name}.safetensors") as temporary:
            save_file(to_row_major(network.state_dict()), temporary)
    config = {
        "format": FORMAT,
        "image_size": image_size,
        "unet": dataclasses.asdict(unet.config),
        "diffusion": dataclasses.asdict(diffusion),
        "classes": [dataclasses.asdict(each) for each in classes],
        "label_dropout": label_dropout if classes else 0.0,
    }
    with atomic_path(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def load_model(folder: Path | str, weights: str = "averaged", device: torch.device | str = "cpu") -> PublishedModel:
    """Load a published model, ready to draw from.

    Args:
        folder: holds config.json and the weights, as `publish_model` writes them.
        weights: "averaged", the usual choice; "raw"; "averaged_0.9999" for a further average of that decay; or "best",
            the averaged weights of the step that an evaluation during training found best.
        device: device for the network.

    Raises:
        CheckpointError: a file is missing or damaged, or another version made the model.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / f"{weights}.safetensors")
    except (OSError, ValueError, SafetensorError) as error:  # ValueError: not text, or not JSON
        raise CheckpointError(f"{folder} holds no usable model: {error}; train one, or name its folder") from error
    try:
        _check_format(config.get("format"), folder)
        unet = UNet(UNetConfig.from_json(config["unet"]))
        unet.load_state_dict(tensors)
        diffusion = build_diffusion(DiffusionConfig(**config["diffusion"])).to(device)
        image_size = int(config["image_size"])
        classes = tuple(ImageClass(**each) for each in config["classes"])
        label_dropout = float(config["label_dropout"])
        _check_num_classes(classes, unet)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}/config.json does not describe the weights beside it: {error}") from error
    unet = unet.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return PublishedModel(unet.eval().requires_grad_(False), diffusion, image_size, classes, label_dropout)


def _check_format(found: object, folder: Path) -> None:
    if found is None:
        raise CheckpointError(
            f"{folder} was made by an older version, whose downsampling padded all sides, so its weights would draw "
            "other images now: train it again, or draw with version 0.1.0"
        )
    if found != FORMAT:
        raise CheckpointError(
            f"{folder} holds a model of format {abbreviate(found)}, and this version draws format {FORMAT}: draw with "
            "the version that made it"
        )


def _check_num_classes(classes: Sequence[ImageClass], unet: UNet) -> None:
    if len(classes) != (unet.config.num_classes or 0):
        raise ValueError(f"{len(classes)} classes are named, and the network knows {unet.config.num_classes or 'none'}")
