"""Measure how fast sampling is: `python -m bench.sample`.

The published network with random weights draws by each sampler, beside diffusers' pipelines with a network of equal
widths; in one run, in turn; figures are medians over the rounds.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch

from bench.machine import described, require_bfloat16
from bench.networks import NUM_TIMESTEPS, Setting, add_setting_arguments, diffusers_unet, setting_of
from bench.turns import add_turn_arguments, time_in_turn
from ddpm import GaussianDiffusion, ImageNoise, UNet, linear_betas, sample
from ddpm.devices import Compilation, Precision, arithmetic, best_device, compiled, resolve_precision
from ddpm.images import to_pixels
from ddpm.samplers import SamplerName

Draw = Callable[[], object]


NUM_CALLS = {"cpu": [10], "cuda": [10, 20]}
"""Network calls an image, unless told otherwise.

Two slow cores (AVX2 only, where training does 2.5 images a second, and a call is a third of a step's work) take 1.1 s
for 8 images: four variants take 65 s to build and warm up, and 3 rounds of them 130.
"""


def main() -> None:
    arguments = _parse_arguments()
    device = best_device()
    setting = setting_of(arguments, device)
    print(f"{described(device)}; {setting.batch_size} images of {setting.image_size}x{setting.image_size}", flush=True)
    variants = {
        (name, steps): build
        for steps in arguments.steps or NUM_CALLS[device.type]
        for name, build in builders_by_name(setting, steps).items()
    }
    builders = {f"{name} {steps}": build for (name, steps), build in variants.items()}
    timings = time_in_turn(builders, device, arguments.rounds, arguments.minutes)
    print(f"{'':24} {'steps':>6} {'images/s':>10} {'calls/s':>10} {'time against ddim':>18}")
    for name, steps in variants:
        key = f"{name} {steps}"
        if key not in timings.left_out:
            rate = setting.batch_size / timings.median(key)
            ratio = timings.ratio(key, f"ddim {steps}")
            print(f"{name:24} {steps:6} {rate:10.3f} {rate * steps:10.1f} {ratio:16.2f} x")


def builders_by_name(setting: Setting, num_steps: int) -> dict[str, Callable[[], Draw]]:
    """Return what builds each variant, of so many network calls an image."""
    # DDIM, which the others are set against, comes first: it is there if any of them is.
    samplers: tuple[SamplerName, ...] = ("ddim", "ddpm", "dpm_solver++")
    variants: dict[str, Callable[[], Draw]] = {name: partial(ours, setting, name, num_steps) for name in samplers}
    if resolve_precision("auto", setting.device) == "bfloat16":
        variants["ddim, float32"] = partial(ours, setting, "ddim", num_steps, precision="float32")
    if setting.device.type == "cuda":
        variants["ddim, not compiled"] = partial(ours, setting, "ddim", num_steps, compilation="off")
    variants["diffusers DDIM, fp32"] = partial(diffusers_pipeline, setting, num_steps, bfloat16=False)
    variants["diffusers DDIM, bf16"] = partial(diffusers_pipeline, setting, num_steps, bfloat16=True)
    return variants


def ours(
    setting: Setting,
    name: SamplerName,
    num_steps: int,
    precision: Precision = "auto",
    compilation: Compilation = "auto",
) -> Draw:
    """Return a function that draws a batch by this project's sampler."""
    best_device()  # sets the process up
    torch.manual_seed(0)
    unet = UNet(setting.unet).to(device=setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = compiled(unet.eval(), compilation, setting.device)
    diffusion = GaussianDiffusion(linear_betas(NUM_TIMESTEPS)).to(setting.device)
    shape = (3, setting.image_size, setting.image_size)

    def draw() -> None:
        noise = ImageNoise(0, range(setting.batch_size), shape, setting.device)
        with arithmetic(precision, setting.device):
            to_pixels(sample(name, network, diffusion, noise, num_steps)).cpu()

    return draw


def diffusers_pipeline(setting: Setting, num_steps: int, bfloat16: bool) -> Draw:
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


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.sample", description=__doc__)
    add_setting_arguments(parser)
    add_turn_arguments(parser, num_rounds=3)
    parser.add_argument(
        "--steps", type=int, nargs="+", help="network calls an image (default 10 on a CPU, 10 20 on a GPU)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
