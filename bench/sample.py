"""Measure how fast sampling is: `python -m bench.sample`.

The published network with random weights draws by each sampler, beside diffusers' pipelines with a network of equal
widths; in one run, in turn; figures are medians over the rounds.
"""

import argparse
from collections.abc import Callable
from functools import partial

from bench.machine import describe
from bench.networks import Setting, Step, add_setting_arguments, diffusers_pipeline, our_drawing, setting_of
from bench.turns import add_turn_arguments, time_in_turn
from ddpm.config import SamplerName
from ddpm.devices import prepare_best_device, resolve_precision

NUM_CALLS = {"cpu": [10], "cuda": [10, 20]}
"""Default number of network calls per image.

Two slow cores (AVX2 only, where training does 2.5 images a second, and a call is a third of a step's work) take 1.1 s
for 8 images: four variants take 65 s to build and warm up, and 3 rounds of them 130.
"""


def main() -> None:
    arguments = _parse_arguments()
    device = prepare_best_device()
    setting = setting_of(arguments, device)
    print(f"{describe(device)}; {setting.batch_size} images of {setting.image_size}x{setting.image_size}", flush=True)
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


def builders_by_name(setting: Setting, num_steps: int) -> dict[str, Callable[[], Step]]:
    """Return a builder of each variant, with `num_steps` network calls per image."""
    # DDIM, which the others are set against, comes first: it is there if any of them is.
    samplers: tuple[SamplerName, ...] = ("ddim", "ddpm", "dpm_solver++")
    variants: dict[str, Callable[[], Step]] = {
        name: partial(our_drawing, setting, name, num_steps) for name in samplers
    }
    if resolve_precision("auto", setting.device) == "bfloat16":
        variants["ddim, float32"] = partial(our_drawing, setting, "ddim", num_steps, precision="float32")
    if setting.device.type == "cuda":
        variants["ddim, not compiled"] = partial(our_drawing, setting, "ddim", num_steps, compilation="off")
    variants["diffusers DDIM, fp32"] = partial(diffusers_pipeline, setting, num_steps, bfloat16=False)
    variants["diffusers DDIM, bf16"] = partial(diffusers_pipeline, setting, num_steps, bfloat16=True)
    return variants


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
