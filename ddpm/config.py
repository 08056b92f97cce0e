"""The settings of networks, noise schedules, training and sampling: plain data, checked when it is made.

Nothing here imports torch. Each field has its bounds in its annotation and its help text below it; programs read both,
to check files and to show forms. The defaults are the published setting: the Keras example of Ho et al. 2020 on Oxford
Flowers 102.
"""

import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Len, Lt, MaxLen, MinLen, MultipleOf

LossName = Literal["mse", "l1", "huber"]
Prediction = Literal["eps", "v", "x_0"]
ScheduleName = Literal["linear", "cosine"]
SamplerName = Literal["ddpm", "ddim", "dpm_solver++"]
RateSchedule = Literal["constant", "cosine", "linear"]
Precision = Literal["auto", "float32", "tensorfloat32", "bfloat16"]
Compilation = Literal["auto", "off", "default", "reduce-overhead", "max-autotune"]

MAX_SEED = 2**63 - 1
"""Maximum of every seed: 63 bits."""

MAX_GUIDANCE_SCALE = 100
"""Maximum weight of the class."""

Positive = Annotated[int, Ge(1)]
Seed = Annotated[int, Interval(ge=0, le=MAX_SEED)]
Share = Annotated[float, Interval(ge=0.0, le=1.0)]
Decay = Annotated[float, Interval(ge=0.0, lt=1.0)]
Beta = Annotated[float, Interval(gt=0.0, lt=1.0)]


@dataclass(frozen=True)
class UNetDimensions:
    """The dimensions of a U-Net that do not follow from its data; the defaults are the published ones.

    Raises:
        ValueError: a value lies outside its bounds, or the dimensions do not fit together.
    """

    widths: Annotated[tuple[Positive, ...], Len(1, 8)] = (64, 128, 256, 512)
    """channels of each level; each level after the first halves height and width"""
    attention: tuple[bool, ...] = (False, False, True, True)
    """for each level, whether self-attention follows each residual block"""
    num_res_blocks: Annotated[int, Interval(ge=1, le=8)] = 2
    """residual blocks of each level on the way down; the way up has one more"""
    time_embedding_dim: Annotated[int, Interval(ge=4, le=4096), MultipleOf(2)] = 256
    """length of the embedding of the time step"""
    norm_groups: Positive = 8
    """groups of each group normalisation; must divide every width"""
    dropout: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.0
    """share of features dropped in each residual block"""

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.attention) != len(self.widths):
            raise ValueError(
                f"attention needs one entry for each of the {len(self.widths)} widths, got {len(self.attention)}"
            )
        for width in self.widths:
            if width % self.norm_groups != 0:
                raise ValueError(f"norm_groups={self.norm_groups} must divide every width, got width {width}")

    @property
    def downsampling(self) -> int:
        """Divisor of height and width: the network takes images whose sides are multiples of it."""
        return int(2 ** (len(self.widths) - 1))

    def configure(self, num_classes: int | None = None, image_channels: int = 3) -> "UNetConfig":
        """Return the configuration of a network of these dimensions for images of such channels and classes."""
        dimensions = {name: getattr(self, name) for name in field_hints(UNetDimensions)}
        return UNetConfig(**dimensions, num_classes=num_classes, image_channels=image_channels)


@dataclass(frozen=True)
class UNetConfig(UNetDimensions):
    """The full configuration of a U-Net; the default network has 63,200,387 parameters.

    Raises:
        ValueError: a value lies outside its bounds, or the dimensions do not fit together.
    """

    image_channels: Positive = 3
    """channels of an image"""
    num_classes: Positive | None = None
    """number of classes that can be asked for; None, as published, makes a network without classes"""

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> "UNetConfig":
        """Return the configuration that JSON holds, with lists in the place of tuples."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class DiffusionConfig:
    """A noise schedule and the network's target; see `ddpm.schedules` and `ddpm.diffusion`.

    Raises:
        ValueError: a value lies outside its bounds, or the schedule leaves no signal or no noise.
    """

    schedule: ScheduleName = "linear"
    """growth of the noise variance over the time steps"""
    num_timesteps: Annotated[int, Interval(ge=2, le=10_000)] = 1000
    """length of the forward process, T in the paper"""
    beta_start: Beta = 1e-4
    """noise variance of the first step of the linear schedule"""
    beta_end: Beta = 0.02
    """noise variance of the last step of the linear schedule"""
    prediction: Prediction = "eps"
    """target of the network: eps, the noise (published); v (Salimans & Ho 2022); or x_0, the image"""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start={self.beta_start} must not exceed beta_end={self.beta_end}")
        if self.schedule == "linear":
            self._check_linear()

    def _check_linear(self) -> None:
        if self.beta_start < sys.float_info.epsilon:
            raise ValueError(f"beta_start must be at least {sys.float_info.epsilon:.1e}, got {self.beta_start}")
        rise = (self.beta_end - self.beta_start) / (self.num_timesteps - 1)
        alphas_cumprod = math.prod(1.0 - (self.beta_start + t * rise) for t in range(self.num_timesteps))
        if alphas_cumprod < sys.float_info.min:
            raise ValueError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end} and num_timesteps={self.num_timesteps} leave "
                f"{alphas_cumprod:.1e} of the image at the last time step (alphas_cumprod), which must be at least "
                f"{sys.float_info.min:.1e}; lower beta_end or num_timesteps"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training; the defaults are the published setting.

    Raises:
        ValueError: a value lies outside its bounds, or two values exclude each other.
    """

    num_steps: Annotated[int, Interval(ge=1, le=100_000_000)] = 24_800
    """optimizer steps of the whole training"""
    seed: Seed = 0
    """seed of the initial weights, the order of images, flips, time steps and noise"""
    loss: LossName = "mse"
    """distance between the network's prediction and its target"""
    min_snr_gamma: Annotated[float, Gt(0.0)] | None = None
    """limit on the weight of easy time steps in the loss (Hang et al. 2023 take 5); null weighs all alike"""
    label_dropout: Share = 0.1
    """share of images whose class is hidden from the network in training, which guidance needs later (Ho & Salimans
    2022); without classes it does nothing"""
    learning_rate: Annotated[float, Interval(gt=0.0, le=1.0)] = 2e-4
    """highest learning rate of the Adam optimizer"""
    rate_schedule: RateSchedule = "constant"
    """course of the learning rate after the warm-up; cosine and linear fall to zero at the last step"""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """steps in which the learning rate rises from zero"""
    gradient_clip: Annotated[float, Gt(0.0)] | None = None
    """largest norm of the whole gradient; null does not clip"""
    accumulation_steps: Positive = 1
    """parts into which a batch is split to save memory; they are computed one after the other"""
    gradient_checkpointing: bool = False
    """save memory by computing the inner values of the blocks again in the backward pass"""
    ema_decay: Decay = 0.999
    """decay of the moving average of the weights"""
    ema_warmup: bool = False
    """let the decay rise from 0.1 during the first updates, for short trainings"""
    extra_ema_decays: tuple[Decay, ...] = ()
    """decays of further moving averages, each published as averaged_DECAY"""
    precision: Precision = "auto"
    """number format of matrix products and convolutions; auto takes bfloat16 where the hardware has it"""
    compilation: Compilation = "auto"
    """mode of torch.compile; auto compiles on a GPU, and on a single GPU replays each step as one CUDA graph"""
    deterministic: bool = False
    """on a GPU, use slower algorithms that give the same weights to the bit each time, also when a training is resumed
    (not yet tried on one); on a CPU this is always so"""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.warmup_steps > self.num_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must not exceed num_steps={self.num_steps}")
        decays = (self.ema_decay, *self.extra_ema_decays)
        if len(set(decays)) < len(decays):
            raise ValueError(f"extra_ema_decays must differ from each other and from ema_decay, got {list(decays)}")
        if self.accumulation_steps > 1 and self.compilation in ("reduce-overhead", "max-autotune"):
            raise ValueError(
                f"compilation={self.compilation} needs accumulation_steps=1, got {self.accumulation_steps}: the CUDA "
                "graphs of the parts overwrite each other's memory; take compilation=default"
            )


@dataclass(frozen=True)
class SamplingConfig:
    """Settings for drawing images from a trained network; other ways to draw take their defaults from here.

    Raises:
        ValueError: a value lies outside its bounds.
    """

    seed: Seed = 0
    """seed of the images; image i depends on the seed and on i alone"""
    sampler: SamplerName = "ddim"
    """ddpm: ancestral sampling, as published; ddim and dpm_solver++: nearly the same in far fewer network calls"""
    num_sampling_steps: Positive = 50
    """network calls for each image, at most the number of time steps"""
    eta: Share = 0.0
    """noise that each step of ddim and dpm_solver++ adds; 0 makes each image a function of its initial noise"""
    precision: Precision = "auto"
    """number format of matrix products and convolutions; auto takes bfloat16 where the hardware has it"""
    classes: Annotated[tuple[str | int, ...], Len(1)] | None = None
    """classes to draw, by name or number, in turn over the images; a class whose name is a number is meant by that
    name alone; null takes all that the model knows"""
    guidance_scale: Annotated[float, Interval(ge=0.0, le=MAX_GUIDANCE_SCALE)] = 1.0
    """weight of the class (Ho & Salimans 2022: 1 + w): 1 as trained, more exaggerates the class, 0 ignores it"""

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(config: object) -> None:
    """Check each field of a dataclass against the bounds and choices in its annotation.

    Raises:
        ValueError: a value lies outside; the message names the field, the value and what is allowed.
    """
    kind: Any = type(config)
    for name, hint in field_hints(kind).items():
        value = getattr(config, name)
        if problem := _find_problem(value, hint):
            got = value.item() if hasattr(value, "item") else value  # NumPy's repr names its type
            raise ValueError(f"{name} must be {problem}, got {got!r}")


@cache
def field_hints(kind: Any) -> dict[str, Any]:
    """Return the annotations of a dataclass's fields, resolved, with their bounds."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _find_problem(value: Any, hint: Any) -> str | None:
    """Return what `hint` allows, in words, where `value` breaks it."""
    if get_origin(hint) is Annotated:
        kind, *metadata = get_args(hint)
        return _find_problem(value, kind) or _find_broken_bound(value, metadata)
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        is_none_allowed = len(kinds) < len(get_args(hint))
        if len(kinds) > 1 or (value is None and is_none_allowed):
            return None
        problem = _find_problem(value, kinds[0])
        return f"{problem}, or None" if problem and is_none_allowed else problem
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) is tuple:
        problems = (_find_problem(item, get_args(hint)[0]) for item in value)
        return next((f"a list, each item {problem}" for problem in problems if problem), None)
    return None


def _find_broken_bound(value: Any, metadata: list[Any]) -> str | None:
    allowed, is_broken = [], False
    for bound in _expand(metadata):
        if type(bound) in _BOUNDS:
            words, attribute, is_kept = _BOUNDS[type(bound)]
            limit = getattr(bound, attribute)
            allowed.append(f"{words} {limit}")
            is_broken |= not is_kept(value, limit)
    return " and ".join(allowed) if is_broken else None


def _expand(metadata: list[Any]) -> Iterator[Any]:
    for each in metadata:
        yield from each if isinstance(each, GroupedMetadata) else [each]


_BOUNDS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {
    Ge: ("at least", "ge", operator.ge),
    Gt: ("above", "gt", operator.gt),
    Le: ("at most", "le", operator.le),
    Lt: ("below", "lt", operator.lt),
    MultipleOf: ("a multiple of", "multiple_of", lambda value, divisor: value % divisor == 0),
    MinLen: ("of length at least", "min_length", lambda value, length: len(value) >= length),
    MaxLen: ("of length at most", "max_length", lambda value, length: len(value) <= length),
}
