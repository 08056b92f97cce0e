"""Measure how fast training is: `python -m bench.train`.

All variants train the same network on this machine in one run, in turn; figures are medians over the rounds.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial

from bench.keras_network import keras_loop
from bench.machine import describe, matrix_ceiling
from bench.networks import (
    PLAIN,
    Setting,
    Step,
    add_setting_arguments,
    by_hand,
    diffusers_loop,
    flops_per_image,
    ours,
    repeat,
    setting_of,
)
from bench.turns import add_turn_arguments, time_in_turn
from ddpm.devices import prepare_best_device

OURS = "this project"

NUM_STEPS = {"cpu": 1, "cuda": 20}
"""Default number of steps per turn.

Two slow cores (AVX2 only, 2.5 images a second in float32) are done with the defaults in less than two minutes: 5 s
until the first variant, 20 to start and build three of them, 13 to warm them up, 5 rounds of 3 x 3.3, 10 for the
ceiling. Cores half as fast take twice as long. Keras, where it is installed, takes 75 s until it is warm, and compiled
by XLA 110: then 225 s are over before the first round, and `time_in_turn` begins no third.
"""

PEAK_MEMORY = {"cpu": "each variant's process", "cuda": "each variant's turn, less what the others keep meanwhile"}
"""Source of the peaks of memory, for the table's last line."""


def main() -> None:
    arguments = _parse_arguments()
    device = prepare_best_device()
    setting = setting_of(arguments, device)
    num_steps = arguments.steps or NUM_STEPS[device.type]
    print(f"{describe(device)}; batch {setting.batch_size} of {setting.image_size}x{setting.image_size}", flush=True)

    peers = {name: build for name, build in _peers(setting).items() if name not in arguments.leave_out}
    steps: dict[str, Callable[[], Step]] = {OURS: partial(ours, setting), **peers}
    builders = {name: partial(repeat, build, num_steps) for name, build in steps.items()}
    timings = time_in_turn(builders, device, arguments.rounds, arguments.minutes)
    ceiling, flops = matrix_ceiling(device), flops_per_image(setting)

    print(f"{flops / 1e9:.1f} GFLOP an image; a matrix product reaches {ceiling / 1e12:.2f} TFLOP/s")
    print(f"{'':28} {'images/s':>10} {'TFLOP/s':>9} {'of ceiling':>11} {'peak GiB':>9} {'this project is':>16}")
    for name in timings.seconds:
        rate = setting.batch_size * num_steps / timings.median(name)
        print(
            f"{name:28} {rate:10.2f} {rate * flops / 1e12:9.3f} {100 * rate * flops / ceiling:10.1f}% "
            f"{timings.peak_memory_gib[name] or math.nan:9.2f} {timings.ratio(name, OURS):14.2f} x"
        )
    print(f"{len(timings.seconds[OURS])} rounds of {num_steps} steps; peak memory of {PEAK_MEMORY[device.type]}")


def _peers(setting: Setting) -> dict[str, Callable[[], Step]]:
    return {
        "the same, plain eager fp32": partial(by_hand, setting, PLAIN),
        "diffusers' example, fp32": partial(diffusers_loop, setting, bfloat16=False),
        "diffusers' example, bf16": partial(diffusers_loop, setting, bfloat16=True),
        "Keras": partial(keras_loop, setting, xla=False),
        "Keras, XLA": partial(keras_loop, setting, xla=True),
    }


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__)
    add_setting_arguments(parser)
    add_turn_arguments(parser, num_rounds=5)
    parser.add_argument("--steps", type=int, help="steps of each variant in a round (default 1 on a CPU, 20 on a GPU)")
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="NAME", help="such as 'Keras, XLA', to save time and memory"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
