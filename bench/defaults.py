"""What each default of the training loop is worth: `python -m bench.defaults`.

A loop written out by hand makes every choice as the project does, and then all but one of them; in one run, in turn.
"""

import argparse
from dataclasses import replace
from functools import partial

from bench.machine import described
from bench.networks import Choices, Setting, by_hand, repeated
from bench.turns import timed_in_turn
from ddpm.devices import best_device

ALL = "all of them"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.defaults", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32, help="images of a step (default 32)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default 5)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes on a CPU")
    arguments = parser.parse_args()
    device = best_device()
    setting = Setting(arguments.batch_size, 64, (64, 128, 256, 512), device)
    compiled = "default" if device.type == "cuda" else ""
    chosen = Choices(compilation=compiled)
    others = {
        ALL: chosen,
        "without channels_last": replace(chosen, channels_last=False),
        "in float32": replace(chosen, bfloat16=False),
        "without the fused Adam": replace(chosen, fused_adam=False),
        "without the foreach average": replace(chosen, foreach_ema=False),
        "without fused attention": replace(chosen, fused_attention=False),
        "with gradient checkpointing": replace(chosen, gradient_checkpointing=True),
    }
    if compiled:
        others["without torch.compile"] = replace(chosen, compilation="")
        others["with CUDA graphs"] = replace(chosen, compilation="reduce-overhead")
    else:
        others["without keeping freed memory"] = replace(chosen, kept_memory=False)
        if arguments.compile:
            others["with torch.compile"] = replace(chosen, compilation="default")
    print(f"{described(device)}; batch {setting.batch_size} of 64x64", flush=True)
    num_steps = 1 if device.type == "cpu" else 20
    steps = {name: partial(repeated, partial(by_hand, setting, choices), num_steps) for name, choices in others.items()}
    timings = timed_in_turn(steps, arguments.rounds, device)
    print(f"{'':30} {'images/s':>10} {'time against all':>17}")
    for name in timings.seconds:
        rate = num_steps * setting.batch_size / timings.median(name)
        print(f"{name:30} {rate:10.2f} {timings.ratio(name, ALL):15.2f} x")


if __name__ == "__main__":
    main()
