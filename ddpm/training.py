"""Training as an iterator: each step yields an event, and the caller decides what to do with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm.classes import NO_CLASS
from ddpm.config import TrainingConfig
from ddpm.data import TrainingImages
from ddpm.devices import deterministic_algorithms, float32_products
from ddpm.diffusion import GaussianDiffusion
from ddpm.distributed import rank, share, world_size
from ddpm.recording import RecordedFunction
from ddpm.seeds import stream_seed
from ddpm.shapes import Bool, Float, Int64
from ddpm.training_state import TrainingState, learning_rate_at
from ddpm.training_step import NUM_QUARTILES, Batch, TrainingStep
from ddpm.unet import UNet

# First numbers of random streams that must not meet those of ddpm.data: permutations by epoch, flips by step.
_LABEL_DROPOUT_STREAM = 1 << 39
_DIFFUSION_STREAM = 1 << 40
_DROPOUT_STREAM = 1 << 41
_RANK_SHIFT = 42


@dataclass(frozen=True)
class StepEvent:
    """The results of one step, after the optimizer and the moving averages.

    Tensors are on the device, so reading them waits for the step.
    """

    step: int
    """steps done, 1 … num_steps"""
    num_images_seen: int
    loss: Tensor
    """mean loss of the batch over all processes; weighted if min_snr_gamma is set"""
    learning_rate: float
    gradient_norm: Tensor
    """before clipping"""
    quartile_loss_sums: Tensor
    """sum of the unweighted losses of the images, by quartile of t, shape (4,)"""
    quartile_counts: Tensor
    """number of images, by quartile of t, shape (4,)"""


def train(
    state: TrainingState, images: TrainingImages, diffusion: GaussianDiffusion, config: TrainingConfig
) -> Iterator[StepEvent]:
    """Train from `state.step` to `config.num_steps`: Ho et al. 2020, Algorithm 1.

    Step k is a function of the state and (seed, k), so a resumed run equals an uninterrupted one: to the bit on a CPU,
    and on a GPU with `config.deterministic`. No step waits for the device; the caller may leave at any event. If
    torchrun has started several processes, each works on its share of the same batch.

    Args:
        state: changed in place.
        images: the training images, on the device of the model; their labels are passed to the model.
        diffusion: the forward process.
        config: the settings of the training.

    Yields:
        One event per step, after the optimizer and the moving averages.

    Raises:
        ValueError: the batch cannot be split evenly among processes and accumulation steps, the labels do not fit the
            model, or the images are on another device.
    """
    _require_labels_that_fit(state.model, images.labels)
    num_parts = world_size() * config.accumulation_steps
    if images.batch_size % num_parts:
        raise ValueError(
            f"batch_size={images.batch_size} must be a multiple of processes * accumulation_steps = "
            f"{world_size()} * {config.accumulation_steps}"
        )
    device = images.device
    if (place := next(state.model.parameters()).device).type != device.type:
        raise ValueError(f"the images come on {device} and the model is on {place}: give both the same device")
    training_step = TrainingStep(state, diffusion.to(device), config, device)
    take_step = RecordedFunction(training_step, device) if may_record(config, device) else training_step
    if state.first_not_finite is None:
        state.first_not_finite = torch.zeros((), dtype=torch.int64, device=device)
    for step in range(state.step, config.num_steps):
        batch = draw_batch(images, step, config.seed, diffusion.num_timesteps, config.label_dropout)
        rate = learning_rate_at(step, config)
        state.set_learning_rate(rate)
        dropout_seed = stream_seed(config.seed, (rank() << _RANK_SHIFT) + _DROPOUT_STREAM + step)
        with (
            _seeded_globally(dropout_seed, device),
            float32_products(config.precision, device),
            deterministic_algorithms(config.deterministic, device),
        ):
            report = take_step(*batch.tensors())
        training_step.finish()
        state.step = step + 1
        loss, sums, counts, gradient_norm = torch.split(report, [1, NUM_QUARTILES, NUM_QUARTILES, 1])
        loss, gradient_norm = loss[0], gradient_norm[0]
        is_fine = loss.isfinite() & gradient_norm.isfinite() | (state.first_not_finite > 0)
        state.first_not_finite = torch.where(is_fine, state.first_not_finite, state.step)
        # The report is a mean over the processes, but these are sums.
        sums, counts = sums * world_size(), counts * world_size()
        yield StepEvent(state.step, state.step * images.batch_size, loss, rate, gradient_norm, sums, counts)


def may_record(config: TrainingConfig, device: torch.device) -> bool:
    """Return whether to record the step: on one GPU, unless `compilation` names a mode."""
    return device.type == "cuda" and config.compilation == "auto" and world_size() == 1


def draw_batch(images: TrainingImages, step: int, seed: int, num_timesteps: int, label_dropout: float = 0.0) -> Batch:
    """Return this process's share of the batch of step `step`.

    Each process draws the time steps, noise and dropped labels of the whole batch, so that the batch does not depend on
    the number of processes.
    """
    part = share(images.batch_size)
    labels = images.batch_labels(step, part)  # before the images, which may fetch the next step's
    if labels is not None:
        is_dropped = draw_dropped_labels(images.batch_size, step, seed, label_dropout)[part]
        labels = torch.where(is_dropped, NO_CLASS, labels).to(images.device, non_blocking=True)
    x_0 = images.batch(step, part).contiguous(memory_format=torch.channels_last)
    generator = torch.Generator(x_0.device).manual_seed(stream_seed(seed, _DIFFUSION_STREAM + step))
    t, eps = draw_t_and_eps((images.batch_size, *x_0.shape[1:]), num_timesteps, generator)
    return Batch(x_0, t[part], eps[part], labels)


def draw_dropped_labels(batch_size: int, step: int, seed: int, label_dropout: float) -> Bool[Tensor, " batch"]:
    """Return a mask of the labels that step `step` replaces by "no class", each with probability `label_dropout`."""
    generator = torch.Generator().manual_seed(stream_seed(seed, _LABEL_DROPOUT_STREAM + step))
    return torch.rand(batch_size, generator=generator) < label_dropout


def draw_t_and_eps(
    shape: tuple[int, ...], num_timesteps: int, generator: torch.Generator
) -> tuple[Int64[Tensor, " batch"], Float[Tensor, "batch channels height width"]]:
    """Draw t, uniform in 0 … T-1, and standard normal eps for each image of a batch of this shape."""
    t = torch.randint(num_timesteps, shape[:1], generator=generator, device=generator.device)
    eps = torch.randn(shape, generator=generator, device=generator.device)
    return t, eps


def _require_labels_that_fit(model: nn.Module, labels: Tensor | None) -> None:
    """Check labels here: on a GPU a label out of range ends the process without a clear message."""
    num_classes = model.config.num_classes if isinstance(model, UNet) else None
    if num_classes is None:
        return
    if labels is None:
        raise ValueError(f"the network knows {num_classes} classes, so the images need labels, got none")
    if int(labels.min()) < NO_CLASS or int(labels.max()) >= num_classes:
        raise ValueError(
            f"labels must lie in 0 … {num_classes - 1}, or be {NO_CLASS} for no class, got "
            f"{int(labels.min())} … {int(labels.max())}"
        )


@contextmanager
def _seeded_globally(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generator of `device`, which dropout uses, and restore the caller's state after the block."""
    generator = torch.default_generator
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)
