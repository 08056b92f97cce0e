"""Measure what each default of the training loop gains: `python -m bench.defaults`.

A loop written out by hand makes every choice as the project does, and then all but one of them; in one run, in turn.
"""

import argparse
from dataclasses import replace
from functools import partial

import torch

from bench.machine import describe
from bench.networks import Choices, add_setting_arguments, by_hand, repeat, setting_of
from bench.turns import add_turn_arguments, time_in_turn
from ddpm.devices import prepare_best_device, resolve_precision

ALL = "all of them"

NUM_STEPS = {"cpu": 1, "cuda": 20}
"""Steps of a turn.

Two slow cores without bf16 instructions take 3.3 s a step: seven variants take 60 s to build and warm up, and 5 rounds
of them 115.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.defaults", description=__doc__)
    add_setting_arguments(parser)
    add_turn_arguments(parser, num_rounds=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes on a CPU")
    arguments = parser.parse_args()
    device = prepare_best_device()
    setting = setting_of(arguments, device)
    print(f"{describe(device)}; batch {setting.batch_size} of {setting.image_size}x{setting.image_size}", flush=True)
    num_steps = NUM_STEPS[device.type]
    builders = {
        name: partial(repeat, partial(by_hand, setting, choices), num_steps)
        for name, choices in choices_by_name(device, arguments.compile).items()
    }
    timings = time_in_turn(builders, device, arguments.rounds, arguments.minutes)
    print(f"{'':30} {'images/s':>10} {'time against all':>17}")
    for name in timings.seconds:
        rate = num_steps * setting.batch_size / timings.median(name)
        print(f"{name:30} {rate:10.2f} {timings.ratio(name, ALL):15.2f} x")


def choices_by_name(device: torch.device, is_compiled_on_cpu: bool) -> dict[str, Choices]:
    """Return what the project chooses on this device, and the same with one choice changed each time."""
    has_bfloat16 = resolve_precision("auto", device) == "bfloat16"
    chosen = Choices(bfloat16=has_bfloat16, compilation="default" if device.type == "cuda" else "")
    variants = {ALL: chosen, "without channels_last": replace(chosen, channels_last=False)}
    if has_bfloat16:
        variants["in float32"] = replace(chosen, bfloat16=False)
    variants |= {
        "without the fused Adam": replace(chosen, fused_adam=False),
        "without the foreach average": replace(chosen, foreach_ema=False),
        "without fused attention": replace(chosen, fused_attention=False),
        "with gradient checkpointing": replace(chosen, gradient_checkpointing=True),
    }
    if device.type == "cuda":
        variants["without torch.compile"] = replace(chosen, compilation="")
        variants["with CUDA graphs"] = replace(chosen, compilation="reduce-overhead")
    else:
        variants["without keeping freed memory"] = replace(chosen, kept_memory=False)
        if is_compiled_on_cpu:
            variants["with torch.compile"] = replace(chosen, compilation="default")
    return variants


if __name__ == "__main__":
    main()
