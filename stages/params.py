"""The parameters of an experiment, and the only reader and writer of params.yaml.

One section a stage. Every number stands in params.yaml, none has a default here, so that DVC sees each of them; unknown
keys, wrong types and combinations that cannot work are refused before anything runs.
"""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import StageError

PARAMS_FILE = Path("params.yaml")
PROFILES_FOLDER = Path("profiles")

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1)]


class ParamsError(StageError):
    """Parameters cannot be used; the message names what was got and what is allowed."""


class Section(BaseModel):
    """Strict and frozen; unknown keys are refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)


class SyntheticParams(Section):
    num_images: Annotated[int, Field(ge=10, le=1_000_000)]
    """how many flowers to draw"""
    image_size: Annotated[int, Field(ge=16, le=1024)]
    """height and width of the drawn images, in pixels"""
    variety: Annotated[float, Field(ge=0.0, le=1.0)]
    """how much flowers differ in position, size, turn, tilt, leaves and colours; the less, the easier to learn"""
    seed: Seed
    """of the drawings: the same seed gives the same bytes on every machine"""


class DownloadParams(Section):
    dataset: Literal["synthetic_flowers", "flowers102", "folder"]
    """synthetic_flowers: drawn here; flowers102: Oxford Flowers 102; folder: your own images, sub-folders as classes"""
    source: str | None
    """folder: its path; flowers102: a directory or http(s) address that holds its three files, null for the official
    one; synthetic_flowers: null"""
    archive_md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None
    """flowers102 from elsewhere: the md5 of an archive with other bytes than the official one; otherwise null"""
    synthetic: SyntheticParams
    """what to draw for synthetic_flowers"""

    @model_validator(mode="after")
    def _source_fits_dataset(self) -> Self:
        if self.dataset == "folder" and self.source is None:
            raise ValueError("dataset: folder needs source, the path of a directory of images")
        if self.dataset == "synthetic_flowers" and self.source is not None:
            raise ValueError(f"dataset: synthetic_flowers is drawn here, so source must be null, got {self.source!r}")
        if self.dataset != "flowers102" and self.archive_md5 is not None:
            raise ValueError("archive_md5 belongs to dataset: flowers102; set it to null")
        return self


class PreprocessParams(Section):
    image_size: Annotated[int, Field(ge=8, le=1024)]
    """height and width after the centre crop and antialiased resize, in pixels"""
    valid_fraction: Annotated[float, Field(gt=0.0, lt=0.5)]
    """share of images in split "valid", and as many in "test", of a dataset without official splits"""


class UNetParams(Section):
    widths: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=8)]
    """channels of each level; each level after the first halves height and width"""
    attention: tuple[bool, ...]
    """self-attention after each residual block, for each level"""
    num_res_blocks: Annotated[int, Field(ge=1, le=8)]
    """residual blocks of a level on the way down; one more on the way up"""
    time_embedding_dim: Annotated[int, Field(ge=4, le=4096, multiple_of=2)]
    """length of the time step's embedding"""
    norm_groups: Positive
    """groups of each group normalisation; must divide every width"""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    """share of features dropped in each residual block"""

    @model_validator(mode="after")
    def _dimensions_fit(self) -> Self:
        if len(self.attention) != len(self.widths):
            raise ValueError(f"attention needs one entry a level: {len(self.widths)}, got {len(self.attention)}")
        for width in self.widths:
            if width % self.norm_groups != 0:
                raise ValueError(f"norm_groups={self.norm_groups} must divide every width, got width {width}")
        return self

    @property
    def downsampling(self) -> int:
        """Height and width of an image must be multiples of this."""
        return int(2 ** (len(self.widths) - 1))


class DiffusionParams(Section):
    schedule: Literal["linear", "cosine"]
    """how the variance of the noise grows over the time steps"""
    num_timesteps: Annotated[int, Field(ge=2, le=10_000)]
    """T, the length of the forward process"""
    beta_start: Annotated[float, Field(gt=0.0, lt=1.0)]
    """variance of the first step of the linear schedule"""
    beta_end: Annotated[float, Field(gt=0.0, lt=1.0)]
    """variance of the last step of the linear schedule"""
    prediction: Literal["eps", "v"]
    """what the network predicts: eps, the noise (published), or v (Salimans & Ho 2022)"""

    @model_validator(mode="after")
    def _betas_rise(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start={self.beta_start} must not exceed beta_end={self.beta_end}")
        return self


class TrainParams(Section):
    splits: Annotated[tuple[Literal["train", "valid", "test"], ...], Field(min_length=1)]
    """which splits to train on; the published setting takes "train" alone"""
    unet: UNetParams
    """the network"""
    diffusion: DiffusionParams
    """the noise schedule"""
    num_steps: Annotated[int, Field(ge=1, le=100_000_000)]
    """optimizer steps"""
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """images of a step"""
    seed: Seed
    """of the initial weights, the order of images, flips, time steps and noise"""
    random_flips: bool
    """mirror training images left-right at random"""
    loss: Literal["mse", "l1", "huber"]
    """distance between true and predicted noise"""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    """of Adam, at its highest"""
    rate_schedule: Literal["constant", "cosine"]
    """how the rate goes on after the warm-up; cosine falls to zero at the last step"""
    warmup_steps: Annotated[int, Field(ge=0)]
    """steps in which the rate rises from zero"""
    gradient_clip: Annotated[float, Field(gt=0.0)] | None
    """largest norm of the whole gradient; null leaves it alone"""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)]
    """of the moving average of the weights"""
    ema_warmup: bool
    """raise the decay from 0.1 during the first updates, for short runs"""
    precision: Literal["auto", "float32", "bfloat16"]
    """of matrix products and convolutions; auto takes bfloat16 where the hardware has it"""
    log_every: Positive
    """steps between logged losses"""
    sample_every: Positive
    """steps between sample grids; the same noise each time"""
    num_grid_images: Annotated[int, Field(ge=1, le=1024)]
    """images in such a grid"""
    grid_sampling_steps: Positive
    """network calls of each of its images, by DDIM"""
    checkpoint_every: Positive
    """steps between checkpoints"""
    keep_checkpoints: Annotated[int, Field(ge=1, le=100)]
    """how many of the newest stay"""

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.warmup_steps > self.num_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must not exceed num_steps={self.num_steps}")
        if self.grid_sampling_steps > self.diffusion.num_timesteps:
            raise ValueError(
                f"grid_sampling_steps={self.grid_sampling_steps} must not exceed "
                f"num_timesteps={self.diffusion.num_timesteps}"
            )
        return self


class SampleParams(Section):
    num_images: Annotated[int, Field(ge=2, le=1_000_000)]
    """how many images to draw"""
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """images drawn together; it changes the speed, not the images"""
    seed: Seed
    """image i depends on the seed and on i alone"""
    sampler: Literal["ddpm", "ddim"]
    """ddpm: ancestral, published; ddim: nearly the same in a tenth of the network calls"""
    num_sampling_steps: Positive
    """network calls an image, at most num_timesteps"""
    eta: Annotated[float, Field(ge=0.0, le=1.0)]
    """ddim: how much noise each step adds; 0 makes an image a function of its first noise"""
    precision: Literal["auto", "float32", "bfloat16"]
    """of matrix products and convolutions; auto takes bfloat16 where the hardware has it"""
    weights: Literal["averaged", "raw"]
    """which of the trained weights to draw with"""
    num_grid_images: Annotated[int, Field(ge=1, le=1024)]
    """images in grid.png and in the animation, at most num_images"""
    num_frames: Annotated[int, Field(ge=2, le=1000)]
    """frames of the animation of the reverse process, at most num_sampling_steps"""

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if self.num_grid_images > self.num_images:
            raise ValueError(f"num_grid_images={self.num_grid_images} must not exceed num_images={self.num_images}")
        if self.num_frames > self.num_sampling_steps:
            raise ValueError(
                f"num_frames={self.num_frames} must not exceed num_sampling_steps={self.num_sampling_steps}"
            )
        return self


class EvaluateParams(Section):
    enabled: bool
    """whether to compute the distances at all"""
    extractor: Literal["efficientnet_lite0", "inception"]
    """features to compare by: efficientnet_lite0 works offline; inception makes the figures FID and KID"""
    inception_weights: str | None
    """path of torch-fidelity's weights; null downloads them"""
    reference_split: Literal["train", "valid", "test"]
    """the real images that samples are compared with"""
    floor_split: Literal["train", "valid", "test"]
    """other real images, compared with the reference in the same way: what a perfect model would reach"""
    max_reference_images: Annotated[int, Field(ge=2, le=1_000_000)]
    """at most so many of the reference split, chosen at random"""
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    """images whose features are extracted together"""
    kernel_subsets: Annotated[int, Field(ge=1, le=10_000)]
    """random subsets over which the kernel distance's mean and spread are taken"""
    kernel_subset_size: Annotated[int, Field(ge=2, le=100_000)]
    """images of a subset, at most the smaller set"""
    seed: Seed
    """of those choices"""

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        if self.reference_split == self.floor_split:
            raise ValueError(f"floor_split must differ from reference_split, both are {self.floor_split!r}")
        return self


class RegisterParams(Section):
    enabled: bool
    """whether to register the model at all"""
    model_name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,100}$")]
    """the registered model's name in MLflow"""


class Params(Section):
    """One experiment."""

    profile: Annotated[str, Field(pattern="^[a-z0-9-]{1,60}$")]
    """the profile that this experiment started from"""
    download: DownloadParams
    preprocess: PreprocessParams
    train: TrainParams
    sample: SampleParams
    evaluate: EvaluateParams
    register_: Annotated[RegisterParams, Field(alias="register")]

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        size, multiple = self.preprocess.image_size, self.train.unet.downsampling
        if size % multiple != 0:
            raise ValueError(
                f"preprocess.image_size={size} must be a multiple of {multiple}, since train.unet.widths has "
                f"{len(self.train.unet.widths)} levels"
            )
        if self.sample.num_sampling_steps > self.train.diffusion.num_timesteps:
            raise ValueError(
                f"sample.num_sampling_steps={self.sample.num_sampling_steps} must not exceed "
                f"train.diffusion.num_timesteps={self.train.diffusion.num_timesteps}"
            )
        return self

    def section(self, stage: str) -> dict[str, Any]:
        """The parameters of one stage, nested, as plain values."""
        sections: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        return dict(sections[stage])


def read_params(path: Path = PARAMS_FILE) -> Params:
    """The experiment in force.

    Raises:
        ParamsError: the file is missing, is not YAML, or holds parameters that cannot be used.
    """
    return _validated(_read_yaml(path), path)


def list_profiles(folder: Path = PROFILES_FOLDER) -> list[str]:
    """The names of the saved experiments."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def activate(profile: str | None, overrides: Mapping[str, Any], path: Path = PARAMS_FILE) -> Params:
    """Put an experiment in force: a saved profile, or what `path` holds, with `overrides` merged over it.

    The file is written only where something changes, whole or not at all; comments stay.

    Args:
        profile: a name in profiles/; None keeps the active experiment.
        overrides: nested, as in params.yaml, holding only what differs.
        path: the file to write.

    Raises:
        ParamsError: the profile is unknown, or the result cannot be used. The file is then as it was.
    """
    source = path if profile is None else path.parent / PROFILES_FOLDER / f"{profile}.yaml"
    if profile is not None and not source.is_file():
        known = ", ".join(list_profiles(source.parent)) or "none"
        raise ParamsError(f"unknown profile {profile!r}; choose one of: {known}")
    document = _read_yaml(source)
    _merge(document, overrides)
    params = _validated(document, source)
    if source == path and document == _read_yaml(path):
        return params  # dumping it would only lay it out anew
    buffer = io.StringIO()
    _yaml().dump(document, buffer)
    if not path.is_file() or path.read_text() != buffer.getvalue():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(buffer.getvalue())
        temporary.replace(path)
    return params


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """Nested overrides from "train.num_steps=100"-like words, their values read as YAML.

    Raises:
        ParamsError: a word is not of the form NAME=VALUE, its value is not YAML, or two words contradict each other.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ParamsError(f"a parameter is set by NAME=VALUE, such as train.num_steps=100, got {assignment!r}")
        *sections, leaf = name.split(".")
        place = overrides
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ParamsError(f"{assignment!r} sets a part of what was set whole before it")
        try:
            place[leaf] = YAML(typ="safe").load(value)
        except YAMLError as error:
            raise ParamsError(f"the value of {assignment!r} is not YAML: {error}") from None
    return overrides


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"seed": 0}} as {"train.seed": 0}; lists stay values."""
    leaves: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _partial(model: type[BaseModel]) -> type[BaseModel]:
    """The same model with every field optional: what a form may leave out."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _partial(kind)
        elif field.metadata:
            kind = Annotated[kind, *field.metadata]
        help_text = Field(default=None, alias=field.alias, description=field.description)
        fields[name] = (kind | None, help_text)
    return create_model(f"{model.__name__}Override", __config__=ConfigDict(extra="forbid"), **fields)


if TYPE_CHECKING:

    class Overrides(BaseModel):
        """Parameters that differ from the profile: the bounds and help of `Params`, every field optional."""
else:
    Overrides = _partial(Params)


def _validated(document: Mapping[str, Any], source: Path) -> Params:
    try:
        # Through JSON, where strictness knows that a list is the only way to write a tuple. It has no dates: a source
        # named 2024-01-01 is a name.
        return Params.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        problems = [f"  {_described(problem)}" for problem in error.errors()]
        raise ParamsError("\n".join([f"{source} cannot be used:", *problems])) from None


def _described(problem: ErrorDetails) -> str:
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "value_error":  # ours, and it names everything
        return f"{place}: {problem['ctx']['error']}".removeprefix(": ")
    if problem["type"] == "missing":
        return f"{place} is missing"
    if problem["type"] == "extra_forbidden":
        return f"{place} is not a parameter"
    return f"{place}: {problem['msg']}, got {problem['input']!r}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = _yaml().load(path.read_text())
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing; `git checkout {path}` brings it back") from None
    except YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ParamsError(f"{path} must hold sections of parameters, got {type(document).__name__}")
    return document


def _yaml() -> YAML:
    # YAML 1.2: 1e-3 is a number. Round-trip: comments survive an override.
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _merge(document: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(document.get(name), dict):
            _merge(document[name], value)
        else:
            document[name] = value
