"""Training as an iterator: each step yields an event, and the caller decides what to do with it."""

import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddpm.classes import NO_CLASS
from ddpm.data import TrainingImages
from ddpm.devices import Compilation, Precision, autocast, compiled, float32_products
from ddpm.diffusion import GaussianDiffusion, LossName
from ddpm.distributed import average_, rank, share, world_size
from ddpm.ema import ExponentialMovingAverage
from ddpm.guidance import guided
from ddpm.seeds import stream_seed
from ddpm.shapes import Bool, Float, Int64
from ddpm.unet import UNet

RateSchedule = Literal["constant", "cosine", "linear"]

NUM_QUARTILES = 4
"""Parts of 0 … T-1 whose losses are told apart."""

# Beside the epochs' permutations and steps' flips of ddpm.data.
_LABEL_DROPOUT_STREAM = 1 << 39
_DIFFUSION_STREAM = 1 << 40
_DROPOUT_STREAM = 1 << 41
_RANK_SHIFT = 42


class NotFiniteError(Exception):
    """A loss or a gradient was infinite or not a number, so that training cannot go on.

    Attributes:
        step: which one, 1 … num_steps.
        learning_rate: its rate.
    """

    def __init__(self, step: int, learning_rate: float) -> None:
        super().__init__(f"the loss or gradient of step {step} is not finite, at a learning rate of {learning_rate:g}")
        self.step = step
        self.learning_rate = learning_rate


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; the defaults are the published setting.

    Raises:
        ValueError: a value lies outside its range.
    """

    num_steps: int = 24_800
    seed: int = 0
    loss: LossName = "mse"
    min_snr_gamma: float | None = None
    """weighs the losses by Hang et al. 2023; None weighs all alike"""
    label_dropout: float = 0.1
    """share of the labels that are replaced by "no class", so that guidance is possible (Ho & Salimans 2022, Algorithm
    1); of images without labels nothing"""
    learning_rate: float = 2e-4
    rate_schedule: RateSchedule = "constant"
    warmup_steps: int = 0
    """steps in which the rate rises linearly from zero"""
    gradient_clip: float | None = None
    """largest norm of the whole gradient; None leaves it alone"""
    accumulation_steps: int = 1
    """parts in which a batch is worked through, one after the other, to save memory"""
    gradient_checkpointing: bool = False
    """see UNet"""
    ema_decay: float = 0.999
    ema_warmup: bool = False
    extra_ema_decays: tuple[float, ...] = ()
    """of further moving averages beside the one that samples are drawn from"""
    precision: Precision = "auto"
    compilation: Compilation = "auto"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if not 0 <= self.warmup_steps <= self.num_steps:
            raise ValueError(f"warmup_steps must lie in 0 … num_steps={self.num_steps}, got {self.warmup_steps}")
        if not self.learning_rate > 0.0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0.0 <= self.label_dropout <= 1.0:
            raise ValueError(f"label_dropout must lie in [0, 1], got {self.label_dropout}")
        for name, limit in (("gradient_clip", self.gradient_clip), ("min_snr_gamma", self.min_snr_gamma)):
            if limit is not None and not limit > 0.0:
                raise ValueError(f"{name} must be above 0 or None, got {limit}")
        for name, value, kind in (
            ("loss", self.loss, LossName),
            ("rate schedule", self.rate_schedule, RateSchedule),
            ("precision", self.precision, Precision),
            ("compilation", self.compilation, Compilation),
        ):
            if value not in get_args(kind):
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(get_args(kind))}")
        self._validate_combinations()

    def _validate_combinations(self) -> None:
        if self.accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be at least 1, got {self.accumulation_steps}")
        if self.accumulation_steps > 1 and self.compilation in ("reduce-overhead", "max-autotune"):
            raise ValueError(
                f"compilation={self.compilation!r} records CUDA graphs, whose memory the next part of a batch would "
                'take: set accumulation_steps to 1, or compilation to "default"'
            )
        decays = (self.ema_decay, *self.extra_ema_decays)
        if len(set(decays)) < len(decays):
            raise ValueError(f"extra_ema_decays must differ from each other and from ema_decay, got {decays}")


@dataclass
class TrainingState:
    """What training changes, and so what a checkpoint holds."""

    model: nn.Module
    ema: ExponentialMovingAverage
    optimizer: torch.optim.Optimizer
    step: int = 0
    """optimizer steps done"""
    extra_emas: list[ExponentialMovingAverage] = field(default_factory=list)
    first_not_finite: Tensor | None = None
    """the first step with an infinite loss or gradient, 0 while there is none; on the device"""

    @classmethod
    def start(cls, model: nn.Module, config: TrainingConfig) -> "TrainingState":
        """The state before the first step.

        Raises:
            ValueError: a decay lies outside [0, 1).
        """
        model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        ema, *extra_emas = (
            ExponentialMovingAverage(model, decay, config.ema_warmup)
            for decay in (config.ema_decay, *config.extra_ema_decays)
        )
        return cls(model, ema, optimizer, extra_emas=extra_emas)

    def check_finite(self, config: TrainingConfig) -> None:
        """Wait for the device, and make sure that no step so far has gone wrong.

        Raises:
            NotFiniteError: one has.
        """
        step = 0 if self.first_not_finite is None else int(self.first_not_finite)
        if step:
            raise NotFiniteError(step, learning_rate_at(step - 1, config))


@dataclass(frozen=True)
class StepEvent:
    """One step is done: optimizer and moving averages have moved.

    Tensors are on the device, so reading them waits for the step.
    """

    step: int
    """steps done, 1 … num_steps"""
    num_images_seen: int
    loss: Tensor
    """mean loss of the batch, over all processes; weighted, where min_snr_gamma says so"""
    learning_rate: float
    gradient_norm: Tensor
    """before clipping"""
    quartile_loss_sums: Tensor
    """by quartile of t, the sum of the images' losses without weights, shape (4,)"""
    quartile_counts: Tensor
    """by quartile of t, how many images it had, shape (4,)"""


@dataclass(frozen=True)
class Batch:
    """What one process learns from in one step."""

    x_0: Float[Tensor, "batch channels height width"]
    t: Int64[Tensor, " batch"]
    eps: Float[Tensor, "batch channels height width"]
    labels: Int64[Tensor, " batch"] | None = None

    def split(self, num_parts: int) -> Iterator["Batch"]:
        """Equal parts."""
        size = len(self.t) // num_parts
        for start in range(0, len(self.t), size):
            part = slice(start, start + size)
            labels = None if self.labels is None else self.labels[part]
            yield Batch(self.x_0[part], self.t[part], self.eps[part], labels)


def train(
    state: TrainingState, images: TrainingImages, diffusion: GaussianDiffusion, config: TrainingConfig
) -> Iterator[StepEvent]:
    """Train from `state.step` to `config.num_steps`, Algorithm 1 of Ho et al. 2020.

    Step k is a function of the state and (seed, k), so a run that goes on from a checkpoint equals one that never
    stopped. No step waits for the device; the caller may leave at any event. Where torchrun has started several
    processes, each works on its share of the same batch.

    Args:
        state: changed in place.
        images: the training images; its device is that of the model. Their labels are given to the model.
        diffusion: the forward process.
        config: how to train.

    Yields:
        One event a step, after the optimizer and the moving averages.

    Raises:
        ValueError: the batch cannot be split evenly among processes and accumulation steps, or the labels do not fit
            the model.
    """
    _require_labels_that_fit(state.model, images.labels)
    num_parts = world_size() * config.accumulation_steps
    if images.batch_size % num_parts:
        raise ValueError(
            f"batch_size={images.batch_size} must be a multiple of processes * accumulation_steps = "
            f"{world_size()} * {config.accumulation_steps}"
        )
    device = images.device
    diffusion = diffusion.to(device)
    network = _network(state.model, config, device)
    parameters = list(state.model.parameters())
    if state.first_not_finite is None:
        state.first_not_finite = torch.zeros((), dtype=torch.int64, device=device)
    for step in range(state.step, config.num_steps):
        batch = draw_batch(images, step, config.seed, diffusion.num_timesteps, config.label_dropout)
        state.model.train()
        state.optimizer.zero_grad(set_to_none=True)
        dropout_seed = stream_seed(config.seed, (rank() << _RANK_SHIFT) + _DROPOUT_STREAM + step)
        with _seeded_globally(dropout_seed, device), float32_products(config.precision, device):
            report = average_(_backward(network, batch, diffusion, config))
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        gradient_norm = nn.utils.get_total_norm(gradients)
        if config.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, config.gradient_clip, gradient_norm)
        rate = learning_rate_at(step, config)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        for ema in (state.ema, *state.extra_emas):
            ema.update(state.model)
        state.step = step + 1
        loss, sums, counts = report[0], report[1 : 1 + NUM_QUARTILES], report[1 + NUM_QUARTILES :]
        is_fine = loss.isfinite() & gradient_norm.isfinite() | (state.first_not_finite > 0)
        state.first_not_finite = torch.where(is_fine, state.first_not_finite, state.step)
        # The report is a mean over the processes, these are sums.
        sums, counts = sums * world_size(), counts * world_size()
        yield StepEvent(state.step, state.step * images.batch_size, loss, rate, gradient_norm, sums, counts)


def draw_batch(images: TrainingImages, step: int, seed: int, num_timesteps: int, label_dropout: float = 0.0) -> Batch:
    """The share of this process in the batch of step `step`.

    Each process draws the time steps, noise and dropped labels of the whole batch, so that together they work on the
    same batch whatever their number.
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
    """Which labels of the batch of step `step` are replaced by "no class": each with probability `label_dropout`."""
    generator = torch.Generator().manual_seed(stream_seed(seed, _LABEL_DROPOUT_STREAM + step))
    return torch.rand(batch_size, generator=generator) < label_dropout


def draw_t_and_eps(
    shape: tuple[int, ...], num_timesteps: int, generator: torch.Generator
) -> tuple[Int64[Tensor, " batch"], Float[Tensor, "batch channels height width"]]:
    """t uniform in 0 … T-1 and eps standard normal, for each image of a batch of this shape."""
    t = torch.randint(num_timesteps, shape[:1], generator=generator, device=generator.device)
    eps = torch.randn(shape, generator=generator, device=generator.device)
    return t, eps


def _require_labels_that_fit(model: nn.Module, labels: Tensor | None) -> None:
    """On a GPU a label out of range would end the process without a word of its own."""
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


def _network(model: nn.Module, config: TrainingConfig, device: torch.device) -> nn.Module:
    """The model as the loop calls it: compiled where that pays, its gradients averaged over the processes."""
    model.gradient_checkpointing = config.gradient_checkpointing  # type: ignore[assignment]
    network = compiled(model, config.compilation, device)
    if world_size() == 1:
        return network
    with warnings.catch_warnings():
        # Of its successor, forward_sync_buffers, which older releases do not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # they are constants
            # The buckets' views take the weights' own order of memory, which the fused optimizer relies on.
            gradient_as_bucket_view=True,
        )


def _backward(
    network: nn.Module, batch: Batch, diffusion: GaussianDiffusion, config: TrainingConfig
) -> Float[Tensor, " report"]:
    """Leave the gradient of the batch in the weights.

    Returns:
        The mean loss; then for each quartile of t the sum of the images' losses; then how many images it had.
    """
    parts = list(batch.split(config.accumulation_steps))
    reports = []
    for number, part in enumerate(parts, start=1):
        is_last = number == len(parts)
        with _gradients_kept_here(network) if not is_last else nullcontext():
            with autocast(config.precision, batch.x_0.device):
                model = network if part.labels is None else guided(network, part.labels)
                losses = diffusion.losses(model, part.x_0, part.t, part.eps, config.loss)
                weighted = losses
                if config.min_snr_gamma is not None:
                    weighted = losses * diffusion.min_snr_weights(part.t, config.min_snr_gamma)
                loss = weighted.mean() / len(parts)
            loss.backward()  # type: ignore[no-untyped-call]
        reports.append(_report(loss.detach(), losses.detach(), part.t, diffusion.num_timesteps))
    return torch.stack(reports).sum(dim=0)


def _report(loss: Tensor, losses: Tensor, t: Tensor, num_timesteps: int) -> Tensor:
    quartile = torch.arange(NUM_QUARTILES, device=t.device)[:, None] == t * NUM_QUARTILES // num_timesteps
    sums = torch.where(quartile, losses, 0.0).sum(dim=1)
    return torch.cat([loss[None], sums, quartile.sum(dim=1)])


def _gradients_kept_here(network: nn.Module) -> AbstractContextManager[None]:
    """Processes exchange gradients once a step, after its last part."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The rate of step `step` (0, 1, …): linear warm-up, then constant, or down to zero on a line or half a cosine.

    The cosine is Loshchilov & Hutter 2017, Eq. 5, without restarts.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.rate_schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    if config.rate_schedule == "linear":
        return config.learning_rate * (1.0 - progress)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


@contextmanager
def _seeded_globally(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the global generator of `device`, which dropout draws from, and puts the caller's state back."""
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
