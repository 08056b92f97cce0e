"""The sections of params.yaml, one a stage: each parameter with its type, bounds and the help that forms show."""

import math
import sys
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seed = Annotated[int, Field(ge=0, lt=2**63)]
LEAST_COMPARED_IMAGES = 10
"""Of a set, for a distance to be worth its name."""

Positive = Annotated[int, Field(ge=1)]
Split = Literal["train", "valid", "test"]


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
    skip_damaged: bool
    """leave out images that cannot be decoded, and list them in build/dataset/skipped.csv; false ends the run there"""


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
    prediction: Literal["eps", "v", "x_0"]
    """what the network predicts: eps, the noise (published); v (Salimans & Ho 2022); or x_0, the image"""

    @model_validator(mode="after")
    def _betas_rise(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start={self.beta_start} must not exceed beta_end={self.beta_end}")
        return self

    @model_validator(mode="after")
    def _signal_and_noise_remain(self) -> Self:
        # As ddpm.diffusion refuses them, but before anything runs, and without torch, which the flows would wait for.
        if self.schedule != "linear":
            return self
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
        return self


class ReferenceParams(Section):
    extractor: Literal["efficientnet_lite0", "inception"]
    """features to compare images by: efficientnet_lite0 works offline; inception makes the figures FID and KID"""
    inception_weights: str | None
    """path of torch-fidelity's weights; null downloads them"""
    max_images_per_split: Annotated[int, Field(ge=10, le=1_000_000)] | None
    """at most so many real images of each split, chosen at random; null takes all"""
    seed: Seed
    """of that choice"""
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    """images whose features are extracted together, of samples too"""
    num_processes: Annotated[int, Field(ge=1, le=1024)]
    """processes on this machine that share the extraction, of samples too, one a GPU; it changes the speed, and the
    features by rounding alone"""


class TrainParams(Section):
    splits: Annotated[tuple[Split, ...], Field(min_length=1)]
    """which splits to train on; the published setting takes "train" alone"""
    class_conditional: bool
    """tell the network the class of each image, so that images of a class can be asked for; published: false"""
    label_dropout: Annotated[float, Field(ge=0.0, le=1.0)]
    """share of images whose class is kept back, which sample.guidance_scale needs; without classes it does nothing"""
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
    """distance between the true and the predicted noise, or what else is predicted"""
    min_snr_gamma: Annotated[float, Field(gt=0.0)] | None
    """weigh the losses so that easy time steps do not dominate (published for this: 5); null weighs all alike"""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    """of Adam, at its highest"""
    rate_schedule: Literal["constant", "cosine", "linear"]
    """how the rate goes on after the warm-up; cosine and linear fall to zero at the last step"""
    warmup_steps: Annotated[int, Field(ge=0)]
    """steps in which the rate rises from zero"""
    gradient_clip: Annotated[float, Field(gt=0.0)] | None
    """largest norm of the whole gradient; null leaves it alone"""
    accumulation_steps: Positive
    """parts in which a batch is worked through, one after the other, to save memory"""
    gradient_checkpointing: bool
    """save memory by computing the blocks' inner values twice"""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)]
    """of the moving average of the weights"""
    ema_warmup: bool
    """raise the decay from 0.1 during the first updates, for short runs"""
    extra_ema_decays: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...]
    """of further moving averages, published beside the first as averaged_DECAY"""
    precision: Literal["auto", "float32", "tensorfloat32", "bfloat16"]
    """of matrix products and convolutions; auto takes bfloat16 where the hardware has it"""
    compilation: Literal["auto", "off", "default", "reduce-overhead", "max-autotune"]
    """the mode of torch.compile; auto compiles on a GPU; on one GPU it also replays the whole step as one CUDA graph"""
    deterministic: bool
    """on a GPU, learn the same weights to the bit each time, also when a training is resumed, by slower algorithms (not
    yet tried on one); a CPU always does"""
    num_processes: Annotated[int, Field(ge=1, le=1024)]
    """processes on this machine that share each batch, one a GPU; it changes the speed, not the batches"""
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
    keep_checkpoints_every: Positive | None
    """those at multiples of so many steps stay, too; null keeps the newest alone"""
    evaluate_every: Positive | None
    """steps between evaluations, whose best weights are published as "best"; null does without"""
    evaluate_num_images: Annotated[int, Field(ge=10, le=100_000)]
    """images of such an evaluation, drawn like those of the grids, and at most as many real ones"""
    evaluate_split: Split
    """the real images that they are compared with"""

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.warmup_steps > self.num_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must not exceed num_steps={self.num_steps}")
        decays = (self.ema_decay, *self.extra_ema_decays)
        if len(set(decays)) < len(decays):
            raise ValueError(f"extra_ema_decays must differ from each other and from ema_decay, got {list(decays)}")
        if self.accumulation_steps > 1 and self.compilation in ("reduce-overhead", "max-autotune"):
            raise ValueError(
                f"compilation={self.compilation} needs accumulation_steps=1, got {self.accumulation_steps}: its CUDA "
                "graphs take each other's memory"
            )
        num_parts = self.num_processes * self.accumulation_steps
        if self.batch_size % num_parts:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of num_processes * accumulation_steps = {num_parts}"
            )
        if self.grid_sampling_steps > self.diffusion.num_timesteps:
            raise ValueError(
                f"grid_sampling_steps={self.grid_sampling_steps} must not exceed "
                f"num_timesteps={self.diffusion.num_timesteps}"
            )
        return self


class SampleParams(Section):
    num_images: Annotated[int, Field(ge=2, le=1_000_000)]
    """how many images to draw"""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None
    """images drawn together; it changes the speed, and the images by rounding alone; null takes what the memory
    holds"""
    seed: Seed
    """image i depends on the seed and on i alone"""
    sampler: Literal["ddpm", "ddim", "dpm_solver++"]
    """ddpm: ancestral, published; ddim and dpm_solver++: nearly the same in far fewer network calls"""
    num_sampling_steps: Positive
    """network calls an image, at most num_timesteps"""
    eta: Annotated[float, Field(ge=0.0, le=1.0)]
    """ddim and dpm_solver++: how much noise each step adds; 0 makes an image a function of its first noise"""
    precision: Literal["auto", "float32", "tensorfloat32", "bfloat16"]
    """of matrix products and convolutions; auto takes bfloat16 where the hardware has it"""
    compilation: Literal["auto", "off", "default", "reduce-overhead", "max-autotune"]
    """the mode of torch.compile; auto compiles on a GPU"""
    num_processes: Annotated[int, Field(ge=1, le=1024)]
    """processes on this machine that share the images, one a GPU; it changes the speed, and the images by rounding
    alone"""
    weights: Annotated[str, Field(pattern=r"^(averaged|raw|best|averaged_0\.\d+)$")]
    """which of the trained weights to draw with: averaged, raw, averaged_DECAY for one of extra_ema_decays, or best,
    the averaged ones of the step that train.evaluate_every found best"""
    classes: Annotated[tuple[str | int, ...], Field(min_length=1)] | None
    """classes to draw, by name or number, in turn over the images; null draws all that the model knows in turn"""
    guidance_scale: Annotated[float, Field(ge=0.0, le=100.0)]
    """how much the class counts (Ho & Salimans 2022: 1 + w): 1 as trained, more exaggerates it, 0 leaves it out"""
    num_grid_images: Annotated[int, Field(ge=1, le=1024)]
    """images in grid.png and in the animation, at most num_images"""
    num_frames: Annotated[int, Field(ge=2, le=1000)]
    """frames of the animation of the reverse process, at most num_sampling_steps"""
    num_interpolation_images: Annotated[int, Field(ge=0, le=64)]
    """images in interpolation.png, from one image to another by way of their noise; 0 makes none"""
    interpolation_ends: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=2, max_length=2)]
    """the numbers of those two images; with classes, all are of the class of the first"""

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if self.num_grid_images > self.num_images:
            raise ValueError(f"num_grid_images={self.num_grid_images} must not exceed num_images={self.num_images}")
        if self.num_frames > self.num_sampling_steps:
            raise ValueError(
                f"num_frames={self.num_frames} must not exceed num_sampling_steps={self.num_sampling_steps}"
            )
        if self.num_interpolation_images in (1, 2):
            raise ValueError(
                f"num_interpolation_images must be 0, or at least 3, since two are the ends, got "
                f"{self.num_interpolation_images}"
            )
        if len(set(self.interpolation_ends)) < 2:
            raise ValueError(f"interpolation_ends must be two images, got {list(self.interpolation_ends)}")
        return self


class EvaluateParams(Section):
    enabled: bool
    """whether to compute features and figures at all"""
    reference_split: Split
    """the real images that samples are compared with; the other splits, compared with them in the same way, are the
    floor: what a perfect model would reach"""
    kernel_subsets: Annotated[int, Field(ge=1, le=10_000)]
    """random subsets over which the kernel distance's mean and spread are taken"""
    kernel_subset_size: Annotated[int, Field(ge=2, le=100_000)]
    """images of a subset, at most the smaller set"""
    seed: Seed
    """of those subsets"""
    num_closest_pairs: Annotated[int, Field(ge=1, le=512)]
    """samples shown beside their nearest training images, the closest first"""


class RegisterParams(Section):
    enabled: bool
    """whether to register the model at all"""
    model_name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,100}$")]
    """the registered model's name in MLflow"""
