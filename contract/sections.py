"""The sections of params.yaml, one for each stage: every parameter with its type, bounds and help text.

Settings of the library are inherited from `ddpm.config`: a `TrainParams` is a `TrainingConfig`, and a `SampleParams` a
`SamplingConfig`. Parameters have no defaults where they are read from a file, also those that have one in the library.
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len
from pydantic import Field

from contract.class_names import CLASS_NAMES
from contract.nesting import flatten
from contract.stage_names import READ_BESIDE
from ddpm.classes import ImageClass, labels_of
from ddpm.config import (
    Compilation,
    DiffusionConfig,
    Positive,
    SamplingConfig,
    Seed,
    Share,
    TrainingConfig,
    UNetDimensions,
)

MIN_COMPARED_IMAGES = 10
"""Minimum images per set for a meaningful distance."""

MAX_ANIMATION_SIDE = 16_383
"""Largest width and height of a picture in WebP, the format of the animation, in pixels."""

NumProcesses = Annotated[int, Interval(ge=1, le=1024)]
NumGridImages = Annotated[int, Interval(ge=1, le=1024)]
BatchSize = Annotated[int, Interval(ge=1, le=65_536)]
Split = Literal["train", "valid", "test"]


_ADDRESS = re.compile(r"\s*([a-z][a-z0-9+.-]*:/|//)", re.IGNORECASE)
"""Begin of an address, also of a mistyped one."""


def _check_at_most(name: str, value: int, bound_name: str, bound: int) -> None:
    if value > bound:
        raise ValueError(f"{name}={value} must not exceed {bound_name}={bound}")


def _refuse_login(name: str, value: str | None) -> None:
    if value and "@" in value and _ADDRESS.match(value):
        raise ValueError(
            f"{name} must be an address without user name and password, which would be written to params.yaml, to the "
            "terminal and into databases: put them into ~/.netrc (machine HOST login NAME password WORD) and leave out "
            "what stands before the @; an @ in a path is written %40"
        )


@dataclass(frozen=True, kw_only=True)
class SyntheticParams:
    num_images: Annotated[int, Interval(ge=10, le=1_000_000)]
    """number of flowers to draw"""
    image_size: Annotated[int, Interval(ge=16, le=1024)]
    """height and width of the drawn images, in pixels"""
    variety: Share
    """variety of the flowers in position, size, turn, tilt, leaves and colours; less is easier to learn"""
    seed: Seed
    """seed of the drawings; the same seed gives the same bytes on every machine"""


@dataclass(frozen=True, kw_only=True)
class DownloadParams:
    dataset: Literal["synthetic_flowers", "flowers102", "folder"]
    """synthetic_flowers: drawn here; flowers102: Oxford Flowers 102; folder: your own images, sub-folders as classes"""
    source: str | None
    """folder: its path; flowers102: a directory or http(s) address that holds its three files, null for the official
    one (user name and password belong in ~/.netrc); synthetic_flowers: null"""
    archive_md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None
    """flowers102 from another source: the md5 of an archive whose bytes differ from the official one; otherwise null"""
    synthetic: SyntheticParams
    """settings of synthetic_flowers"""

    def __post_init__(self) -> None:
        _refuse_login("source", self.source)
        if self.source and "://" in self.source and set("?#") & set(self.source):
            raise ValueError(
                "source must be the address of a directory, to which the names of its files are added: leave out ? "
                "or # and what follows; a token belongs in ~/.netrc, as a password"
            )
        if self.dataset == "folder" and self.source is None:
            raise ValueError("dataset: folder needs source, the path of a directory of images")
        if self.dataset == "synthetic_flowers" and self.source is not None:
            raise ValueError(f"dataset: synthetic_flowers is drawn here, so source must be null, got {self.source!r}")
        if self.dataset != "flowers102" and self.archive_md5 is not None:
            raise ValueError("archive_md5 belongs to dataset: flowers102; set it to null")


@dataclass(frozen=True, kw_only=True)
class PreprocessParams:
    image_size: Annotated[int, Interval(ge=8, le=1024)]
    """height and width after the centre crop and antialiased resize, in pixels"""
    valid_fraction: Annotated[float, Interval(gt=0.0, lt=0.5)]
    """share of images in split "valid", and the same share in "test", for a dataset without official splits"""
    skip_damaged: bool
    """leave out images that cannot be decoded, and list them in build/dataset/skipped.csv; false ends the run there"""


@dataclass(frozen=True, kw_only=True)
class ReferenceParams:
    extractor: Literal["efficientnet_lite0", "inception"]
    """network whose features are compared: efficientnet_lite0 works offline; inception makes the metrics FID and KID"""
    inception_weights: str | None
    """path of torch-fidelity's weights; null downloads them"""
    max_images_per_split: Annotated[int, Interval(ge=MIN_COMPARED_IMAGES, le=1_000_000)] | None
    """largest number of real images of each split, chosen at random; null takes all"""
    seed: Seed
    """seed of the random choice of real images"""
    batch_size: Annotated[int, Interval(ge=1, le=4096)]
    """images whose features are computed together, real ones and samples alike"""
    num_processes: NumProcesses
    """processes on this machine, one per GPU, that share the computation of features, also of samples; it changes the
    speed, and the features by rounding alone"""

    def __post_init__(self) -> None:
        _refuse_login("inception_weights", self.inception_weights)


@dataclass(frozen=True, kw_only=True)
class TrainParams(TrainingConfig):
    splits: Annotated[tuple[Split, ...], Len(1)]
    """splits to train on; the published setting takes "train" alone"""
    class_conditional: bool
    """give the network the class of each image, so that images of a class can be asked for; published: false"""
    unet: UNetDimensions
    """the network"""
    diffusion: DiffusionConfig
    """the noise schedule"""
    batch_size: BatchSize
    """images of a step"""
    random_flips: bool
    """mirror training images left-right at random"""
    num_processes: NumProcesses
    """processes on this machine, one per GPU, that share each batch; it changes the speed, not the batches"""
    log_every: Positive
    """steps between logged losses"""
    sample_every: Positive
    """steps between sample grids, which start from the same noise each time"""
    num_grid_images: NumGridImages
    """images in a sample grid"""
    grid_sampling_steps: Positive
    """network calls for each image of a sample grid, by DDIM"""
    checkpoint_every: Positive
    """steps between checkpoints"""
    keep_checkpoints: Annotated[int, Interval(ge=1, le=100)]
    """number of newest checkpoints to keep"""
    keep_checkpoints_every: Positive | None
    """also keep the checkpoints at multiples of this number of steps; null keeps only the newest"""
    evaluate_every: Positive | None
    """steps between evaluations during training; their best weights are published as "best"; null does none"""
    evaluate_num_images: Annotated[int, Interval(ge=MIN_COMPARED_IMAGES, le=100_000)]
    """images of an evaluation during training, drawn like those of the sample grids, and the most real ones"""
    evaluate_split: Split
    """split of the real images that an evaluation during training compares with"""

    def __post_init__(self) -> None:
        super().__post_init__()
        num_parts = self.num_processes * self.accumulation_steps
        if self.batch_size % num_parts:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of num_processes * accumulation_steps = {num_parts}"
            )
        _check_at_most("grid_sampling_steps", self.grid_sampling_steps, "num_timesteps", self.diffusion.num_timesteps)


@dataclass(frozen=True, kw_only=True)
class SampleParams(SamplingConfig):
    num_images: Annotated[int, Interval(ge=2, le=1_000_000)]
    """number of images to draw"""
    batch_size: BatchSize | None
    """images drawn together; it changes the speed, and the images by rounding alone; null takes what the memory
    holds"""
    compilation: Compilation
    """mode of torch.compile; auto compiles on a GPU"""
    num_processes: NumProcesses
    """processes on this machine, one per GPU, that share the images; it changes the speed, and the images by rounding
    alone"""
    weights: Annotated[str, Field(pattern=r"^(averaged|raw|best|averaged_0\.\d+)$")]
    """trained weights to draw with: averaged; raw; averaged_DECAY for one of train.extra_ema_decays; or best, the
    averaged ones of the step that train.evaluate_every found best"""
    num_grid_images: NumGridImages
    """images in grid.png and in the animation, at most num_images"""
    num_frames: Annotated[int, Interval(ge=2, le=1000)]
    """frames of the animation of the reverse process, at most num_sampling_steps"""
    num_interpolation_images: Annotated[int, Interval(ge=0, le=64)]
    """images in interpolation.png, which leads from one image to another through their noise; 0 makes none"""
    interpolation_ends: Annotated[tuple[Annotated[int, Interval(ge=0, lt=2**31)], ...], Len(2, 2)]
    """numbers of the first and last image of the interpolation; with classes, all are of the class of the first"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_most("num_grid_images", self.num_grid_images, "num_images", self.num_images)
        _check_at_most("num_frames", self.num_frames, "num_sampling_steps", self.num_sampling_steps)
        if self.num_interpolation_images in (1, 2):
            raise ValueError(
                "num_interpolation_images must be 0 or at least 3, since two of them are the ends, got "
                f"{self.num_interpolation_images}"
            )
        if len(set(self.interpolation_ends)) < 2:
            raise ValueError(f"interpolation_ends must be two different images, got {list(self.interpolation_ends)}")


@dataclass(frozen=True, kw_only=True)
class EvaluateParams:
    enabled: bool
    """compute features and metrics; false skips them"""
    reference_split: Split
    """split of the real images that samples are compared with; comparing the other splits with it in the same way gives
    the floor, which a perfect model would reach"""
    kernel_subsets: Annotated[int, Interval(ge=1, le=10_000)]
    """random subsets over which the mean and spread of the kernel distance are taken"""
    kernel_subset_size: Annotated[int, Interval(ge=2, le=100_000)]
    """images of a subset, at most the size of the smaller set"""
    seed: Seed
    """seed of the random subsets"""
    num_closest_pairs: Annotated[int, Interval(ge=1, le=512)]
    """samples shown beside their nearest training images, the closest first"""


@dataclass(frozen=True, kw_only=True)
class RegisterParams:
    enabled: bool
    """register the model in MLflow; false skips it"""
    model_name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,100}$")]
    """name of the registered model in MLflow"""


@dataclass(frozen=True, kw_only=True)
class Params:
    """The parameters of one experiment, section by section."""

    profile: Annotated[str, Field(pattern="^[a-z0-9-]{1,60}$")]
    """name of the profile that the experiment started from"""
    download: DownloadParams
    preprocess: PreprocessParams
    reference: ReferenceParams
    train: TrainParams
    sample: SampleParams
    evaluate: EvaluateParams
    register: RegisterParams

    def __post_init__(self) -> None:
        self._check_stages()
        self._check_classes()

    def _check_stages(self) -> None:
        size, multiple = self.preprocess.image_size, self.train.unet.downsampling
        if size % multiple != 0:
            raise ValueError(
                f"preprocess.image_size={size} must be a multiple of {multiple}, since train.unet.widths has "
                f"{len(self.train.unet.widths)} levels"
            )
        known = ["averaged", "raw", *(f"averaged_{decay}" for decay in self.train.extra_ema_decays)]
        known += ["best"] if self.train.evaluate_every else []
        if self.sample.weights not in known:
            raise ValueError(
                f"sample.weights must be one of {', '.join(known)}, since train.extra_ema_decays is "
                f"{list(self.train.extra_ema_decays)} and train.evaluate_every is "
                f"{self.train.evaluate_every or 'null'}, got {self.sample.weights!r}"
            )
        num_timesteps = self.train.diffusion.num_timesteps
        _check_at_most(
            "sample.num_sampling_steps", self.sample.num_sampling_steps, "train.diffusion.num_timesteps", num_timesteps
        )
        columns = (MAX_ANIMATION_SIDE - 2) // (size + 2)  # two pixels apart; only small images are enlarged
        if self.sample.num_grid_images > columns**2:
            raise ValueError(
                f"sample.num_grid_images={self.sample.num_grid_images} must not exceed {columns**2}, since the "
                f"animation would not fit into WebP, with preprocess.image_size={size}"
            )
        if self.evaluate.enabled and self.sample.num_images < MIN_COMPARED_IMAGES:
            raise ValueError(
                f"sample.num_images={self.sample.num_images} must be at least {MIN_COMPARED_IMAGES}, since "
                "evaluate.enabled is true"
            )

    def _check_classes(self) -> None:
        classes, scale = self.sample.classes, self.sample.guidance_scale
        if not self.train.class_conditional and classes is not None:
            raise ValueError(
                f"sample.classes must be null, since train.class_conditional is false, got {list(classes)}; set "
                "train.class_conditional to true to train a model that can be asked for classes"
            )
        if not self.train.class_conditional and scale != 1.0:
            raise ValueError(f"sample.guidance_scale must be 1, since train.class_conditional is false, got {scale}")
        if self.train.label_dropout == 0.0 and scale != 1.0:
            raise ValueError(
                f"sample.guidance_scale={scale} needs train.label_dropout above 0: guidance compares with images that "
                "were learnt without their class"
            )
        if classes is not None and self.download.dataset in CLASS_NAMES:
            try:
                labels_of(classes, [ImageClass(*known) for known in CLASS_NAMES[self.download.dataset].items()])
            except ValueError as error:
                raise ValueError(f"sample.classes: {error}") from None

    def section(self, stage: str) -> dict[str, Any]:
        """Return the section of one stage as plain nested values."""
        return as_plain(getattr(self, stage))

    def read_by(self, stage: str) -> dict[str, Any]:
        """Return the parameters that a stage reads, by dotted name: those that DVC records with its results."""
        places = tuple(f"{place}." for place in (stage, *READ_BESIDE.get(stage, ())))
        return {name: value for name, value in flatten(as_plain(self)).items() if f"{name}.".startswith(places)}


def as_plain(section: Any) -> dict[str, Any]:
    """Return the values of a section as JSON has them: nested dictionaries, and lists for tuples."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(section)))
    return values
