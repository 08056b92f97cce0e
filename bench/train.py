"""How fast training is: `python -m bench.train`.

All variants train the same network on this machine in one run, in turn; figures are medians over the rounds.
"""

import argparse
from collections.abc import Callable
from functools import partial

from bench.keras_network import keras_loop
from bench.machine import described, matrix_ceiling
from bench.networks import PLAIN, Setting, Step, by_hand, diffusers_loop, flops_per_image, ours, repeated
from bench.turns import timed_in_turn
from ddpm.devices import best_device

OURS = "this project"


def main() -> None:
    arguments = _parse_arguments()
    device = best_device()
    setting = Setting(arguments.batch_size, arguments.image_size, tuple(arguments.widths), device)
    num_steps = arguments.steps or (2 if device.type == "cpu" else 20)
    print(f"{described(device)}; batch {setting.batch_size} of {setting.image_size}x{setting.image_size}", flush=True)

    steps: dict[str, Callable[[], Step]] = {
        OURS: partial(ours, setting),
        "the same, plain eager fp32": partial(by_hand, setting, PLAIN),
    }
    steps |= {name: build for name, build in _peers(setting).items() if name not in arguments.leave_out}
    timings = timed_in_turn(
        {name: partial(repeated, build, num_steps) for name, build in steps.items()}, arguments.rounds, device
    )
    for name, missing in timings.left_out.items():
        print(f"left out: {name} ({missing})")
    ceiling, flops = matrix_ceiling(device), flops_per_image(setting)

    print(f"{flops / 1e9:.1f} GFLOP an image; a matrix product reaches {ceiling / 1e12:.2f} TFLOP/s")
    print(f"{'':28} {'images/s':>10} {'TFLOP/s':>9} {'of ceiling':>11} {'peak GiB':>9} {'this project is':>16}")
    for name in timings.seconds:
        rate = setting.batch_size * num_steps / timings.median(name)
        print(
            f"{name:28} {rate:10.2f} {rate * flops / 1e12:9.3f} {100 * rate * flops / ceiling:10.1f}% "
            f"{timings.peak_memory_gib[name]:9.2f} {timings.ratio(name, OURS):14.2f} x"
        )
    print(f"{arguments.rounds} rounds of {num_steps} steps, each variant in its own process")


def _peers(setting: Setting) -> dict[str, Callable[[], Step]]:
    return {
        "diffusers' example, fp32": partial(diffusers_loop, setting, bfloat16=False),
        "diffusers' example, bf16": partial(diffusers_loop, setting, bfloat16=True),
        "Keras": partial(keras_loop, setting, xla=False),
        "Keras, XLA": partial(keras_loop, setting, xla=True),
    }


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32, help="images of a step (default 32, as published)")
    parser.add_argument("--image-size", type=int, default=64, help="height and width (default 64, as published)")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512], help="channels of each level")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default 5)")
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="NAME", help="such as 'Keras, XLA', to save memory"
    )
    parser.add_argument("--steps", type=int, help="steps of each variant in a round (default 2 on a CPU, 20 on a GPU)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
