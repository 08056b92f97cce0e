"""Measure how fast features are extracted: `python -m bench.features`.

Images a second of each extractor by the number of images taken together, on all cores of a CPU; in one run, in turn;
figures are medians over the rounds. Inception is timed with random weights, which take as long, unless a file of its
own is named.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from bench.machine import describe
from bench.turns import add_turn_arguments, time_in_turn
from ddpm.devices import prepare_best_device
from ddpm.features import FeatureExtractor, build_extractor, extract_features


def main() -> None:
    arguments = _parse_arguments()
    device = prepare_best_device()
    pixels = torch.randint(0, 256, (arguments.num_images, 3, arguments.image_size, arguments.image_size)).byte()
    print(f"{describe(device)}; {len(pixels)} images of {arguments.image_size}x{arguments.image_size}", flush=True)
    inception = "inception" if arguments.inception_weights else "inception, random"
    builders = {
        "efficientnet_lite0": partial(build_extractor, "efficientnet_lite0", device),
        inception: partial(_inception, arguments.inception_weights, device),
    }
    variants = {
        (name, size): partial(_extraction, build, pixels, size, device)
        for name, build in builders.items()
        for size in arguments.batch_sizes
    }
    extractions = {f"{name} {size}": build for (name, size), build in variants.items()}
    timings = time_in_turn(extractions, device, arguments.rounds, arguments.minutes)
    print(f"{'extractor':24} {'batch':>6} {'images/s':>10}")
    for name, size in variants:
        if f"{name} {size}" not in timings.left_out:
            print(f"{name:24} {size:6} {len(pixels) / timings.median(f'{name} {size}'):10.1f}")


def _extraction(
    build: Callable[[], FeatureExtractor], pixels: Tensor, batch_size: int, device: torch.device
) -> Callable[[], object]:
    prepare_best_device()
    extractor = build()
    return lambda: list(extract_features(extractor, pixels, batch_size, device))


def _inception(weights: Path | None, device: torch.device) -> FeatureExtractor:
    if weights is not None:
        return build_extractor("inception", device, weights)
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with (
        mock.patch.object(module, "load_state_dict_from_url", return_value={}),
        mock.patch.object(module.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        return build_extractor("inception", device)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.features", description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 64, 128], help="default 1 8 32 64 128")
    parser.add_argument("--num-images", type=int, default=128, help="images of a round (default 128)")
    parser.add_argument("--image-size", type=int, default=64, help="height and width (default 64)")
    add_turn_arguments(parser, num_rounds=3)
    parser.add_argument("--inception-weights", type=Path, help="file of torch-fidelity's weights")
    return parser.parse_args()


if __name__ == "__main__":
    main()
