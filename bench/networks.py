"""The published network and its peers, each as a function that does one training step on random images."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.machine import require_bfloat16
from ddpm import (
    GaussianDiffusion,
    ImageNoise,
    TrainingConfig,
    TrainingImages,
    TrainingState,
    UNet,
    UNetConfig,
    linear_betas,
    sample,
    train,
)
from ddpm.config import Compilation, Precision, SamplerName
from ddpm.devices import compile_network, drawing, prepare_best_device
from ddpm.images import to_pixels

NUM_IMAGES = 1020
NUM_TIMESTEPS = 1000

BATCH_SIZE = {"cpu": 8, "cuda": 32}
"""Default number of images per step; 32 is the published number.

Two cores without bf16 instructions do 2.5 images a second in float32, so that a step of 8 takes them 3.3 seconds, and
between their turns the processes of all variants of `bench.train` fit 24 GB.
"""

Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """Size of the work, the same for all variants of a measurement."""

    batch_size: int
    image_size: int
    widths: tuple[int, ...]
    device: torch.device

    @property
    def unet(self) -> UNetConfig:
        """Return the configuration with these widths and, as published, attention at the last two levels."""
        return UNetConfig(
            widths=self.widths, attention=tuple(i >= len(self.widths) - 2 for i in range(len(self.widths)))
        )

    def pixels(self) -> Tensor:
        """Return a dataset of noise, as large as the published one."""
        shape = (NUM_IMAGES, 3, self.image_size, self.image_size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --batch-size, --image-size and --widths, which `setting_of` reads."""
    parser.add_argument(
        "--batch-size", type=int, help="images worked on together (default 8 on a CPU, 32 on a GPU; published: 32)"
    )
    parser.add_argument("--image-size", type=int, default=64, help="height and width (default 64, as published)")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[64, 128, 256, 512],
        help="channels of each level (default 64 128 256 512, as published)",
    )  # fmt: skip


def setting_of(arguments: argparse.Namespace, device: torch.device) -> Setting:
    """Return the setting that the arguments of `add_setting_arguments` describe."""
    batch_size = arguments.batch_size or BATCH_SIZE[device.type]
    return Setting(batch_size, arguments.image_size, tuple(arguments.widths), device)


def flops_per_image(setting: Setting) -> float:
    """Return the operations of a forward and a backward pass, as torch counts them.

    Upsampling counts in its plain form, so that a form with fewer products is faster, not smaller.
    """
    unet = UNet(setting.unet)
    x_t = torch.zeros(1, 3, setting.image_size, setting.image_size)
    with patch("ddpm.operations.is_doubled_first", lambda _: True), FlopCounterMode(display=False) as counter:
        unet(x_t, torch.zeros(1, dtype=torch.int64)).sum().backward()
    return float(counter.get_total_flops())


def repeat(build: Callable[[], Step], num_steps: int) -> Step:
    """Build a step, and return a function that takes several of them."""
    step = build()

    def run() -> None:
        for _ in range(num_steps):
            result = step()
        if hasattr(result, "numpy"):  # TensorFlow's way of waiting for the device
            result.numpy()

    return run


def ours(setting: Setting, compilation: Compilation = "auto") -> Step:
    """The training loop of this project, with its defaults."""
    prepare_best_device()
    torch.manual_seed(0)
    config = TrainingConfig(num_steps=100_000_000, compilation=compilation)
    state = TrainingState.start(UNet(setting.unet).to(setting.device), config)
    images = TrainingImages(setting.pixels(), setting.batch_size, seed=0, device=setting.device)
    events = train(state, images, GaussianDiffusion(linear_betas(NUM_TIMESTEPS)), config)
    return lambda: next(events)


@dataclass(frozen=True)
class Choices:
    """Choices of a hand-written loop, corresponding to the defaults of `ours`."""

    channels_last: bool = True
    bfloat16: bool = True
    fused_adam: bool = True
    foreach_ema: bool = True
    fused_attention: bool = True
    kept_memory: bool = True
    """see `ddpm.devices.keep_freed_memory`; only on a CPU"""
    compilation: str = ""
    """a mode of torch.compile"""
    gradient_checkpointing: bool = False


PLAIN = Choices(
    channels_last=False,
    bfloat16=False,
    fused_adam=False,
    foreach_ema=False,
    fused_attention=False,
    kept_memory=False,
)


def by_hand(setting: Setting, choices: Choices) -> Step:
    """The same network in a plain loop.

    Raises:
        LeftOutError: bf16 is chosen, and the device has no instructions for it.
    """
    if choices.bfloat16:
        require_bfloat16(setting.device)
    if choices.kept_memory:
        prepare_best_device()
    torch.manual_seed(0)
    device = setting.device
    unet = UNet(setting.unet).to(device).train()
    unet.gradient_checkpointing = choices.gradient_checkpointing
    average = UNet(setting.unet).to(device)
    layout = torch.channels_last if choices.channels_last else torch.contiguous_format
    for module in (unet, average):
        module.to(memory_format=layout)
    optimizer = torch.optim.Adam(unet.parameters(), lr=2e-4, fused=choices.fused_adam)
    diffusion = GaussianDiffusion(linear_betas(NUM_TIMESTEPS)).to(device)
    images = TrainingImages(setting.pixels(), setting.batch_size, seed=0, device=device)
    backends = [torch.nn.attention.SDPBackend.MATH] if not choices.fused_attention else _ALL_BACKENDS

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(backends):  # where torch.compile sees it: it would share graphs otherwise
            eps_pred: Tensor = unet(x_t, t)
            return eps_pred

    network = torch.compile(predict, mode=choices.compilation) if choices.compilation else predict
    step = 0

    def run() -> None:
        nonlocal step
        x_0 = images.batch(step).contiguous(memory_format=layout)
        step += 1
        t = torch.randint(NUM_TIMESTEPS, (setting.batch_size,), device=device)
        eps = torch.randn(x_0.shape, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=choices.bfloat16):
            loss = diffusion.losses(network, x_0, t, eps).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            averages: list[Tensor] = list(average.parameters())
            weights: list[Tensor] = list(unet.parameters())
            if choices.foreach_ema:
                torch._foreach_lerp_(averages, weights, 0.001)
            else:
                for one, other in zip(averages, weights, strict=True):
                    one.lerp_(other, 0.001)

    return run


_ALL_BACKENDS = [
    torch.nn.attention.SDPBackend.FLASH_ATTENTION,
    torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION,
    torch.nn.attention.SDPBackend.CUDNN_ATTENTION,
    torch.nn.attention.SDPBackend.MATH,
]


def diffusers_loop(setting: Setting, bfloat16: bool) -> Step:
    """UNet2DModel of equal widths in a loop like diffusers' unconditional example, optimizer, rate and EMA included.

    Left out, in its favour: accelerate, and the loading of image files.

    Raises:
        ImportError: diffusers is not installed.
        LeftOutError: bf16 is asked for, and the device has no instructions for it.
    """
    if bfloat16:
        require_bfloat16(setting.device)
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    device = setting.device
    unet = diffusers_unet(setting).to(device).train()
    average = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
    scheduler = DDPMScheduler(num_train_timesteps=NUM_TIMESTEPS, beta_schedule="linear")
    images = TrainingImages(setting.pixels(), setting.batch_size, seed=0, device=device)
    step = 0

    def run() -> None:
        nonlocal step
        clean = images.batch(step).contiguous()
        step += 1
        noise = torch.randn(clean.shape, device=device)
        timesteps = torch.randint(0, NUM_TIMESTEPS, (len(clean),), device=device)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            predicted = unet(noisy, timesteps).sample
            loss = F.mse_loss(predicted.float(), noise)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
        loss.detach().item()  # as the example logs it

    return run


def diffusers_unet(setting: Setting) -> torch.nn.Module:
    """UNet2DModel with the widths and the attention of the published network."""
    from diffusers import UNet2DModel

    has_attention = setting.unet.attention
    return UNet2DModel(  # type: ignore[no-any-return]
        sample_size=setting.image_size,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=setting.widths,
        norm_num_groups=8,
        attention_head_dim=None,
        down_block_types=tuple("AttnDownBlock2D" if one else "DownBlock2D" for one in has_attention),
        up_block_types=tuple("AttnUpBlock2D" if one else "UpBlock2D" for one in reversed(has_attention)),
    )


def our_drawing(
    setting: Setting,
    name: SamplerName,
    num_steps: int,
    precision: Precision = "auto",
    compilation: Compilation = "auto",
) -> Step:
    """Return a function that draws a batch by this project's sampler."""
    prepare_best_device()
    torch.manual_seed(0)
    unet = UNet(setting.unet).to(device=setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = compile_network(unet.eval(), compilation, setting.device)
    diffusion = GaussianDiffusion(linear_betas(NUM_TIMESTEPS)).to(setting.device)
    shape = (3, setting.image_size, setting.image_size)

    def draw() -> None:
        noise = ImageNoise(0, range(setting.batch_size), shape, setting.device)
        with drawing(unet, precision, setting.device):
            to_pixels(sample(name, network, diffusion, noise, num_steps)).cpu()

    return draw


def diffusers_pipeline(setting: Setting, num_steps: int, bfloat16: bool) -> Step:
    """Return a function that draws a batch by diffusers' DDIMPipeline, as its documentation runs it.

    Raises:
        ImportError: diffusers is not installed.
        LeftOutError: bf16 is asked for, and the device has no instructions for it.
    """
    if bfloat16:
        require_bfloat16(setting.device)
    from diffusers import DDIMPipeline, DDIMScheduler

    torch.manual_seed(0)
    unet = diffusers_unet(setting).to(setting.device)
    pipeline = DDIMPipeline(unet, DDIMScheduler(NUM_TIMESTEPS))
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> None:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=bfloat16):
            pipeline(batch_size=setting.batch_size, num_inference_steps=num_steps, output_type="np")

    return draw
