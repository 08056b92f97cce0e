"""Measure image quality against network calls: `python -m bench.quality MODEL REFERENCE`.

Draws the same images (by their numbers) with each sampler and number of steps, and compares them with real images by
the Fréchet and kernel distances on EfficientNet-Lite0's features.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from bench.machine import describe
from ddpm.config import SamplerName
from ddpm.data import load_images
from ddpm.devices import drawing, prepare_best_device
from ddpm.features import FeatureExtractor, build_extractor, extract_features
from ddpm.images import to_pixels
from ddpm.metrics import frechet_distance, kernel_distance
from ddpm.published import PublishedModel, load_model
from ddpm.samplers import ImageNoise, sample

BATCH_SIZE = 64
DEFAULT_CALLS = [
    *("dpm_solver++:10", "dpm_solver++:20", "dpm_solver++:50", "dpm_solver++:20:1", "ddim:10", "ddim:20", "ddim:50"),
    *("ddim:20:1", "ddpm:20", "ddpm:1000"),
]


def main() -> None:
    arguments = _parse_arguments()
    device = prepare_best_device()
    model = load_model(arguments.model, device=device)
    extractor = build_extractor("efficientnet_lite0", device)
    real = load_images(arguments.reference)
    chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[: arguments.num_reference]
    reference = features_of(extractor, real[chosen], device)  # at random: datasets come ordered by class
    print(f"{describe(device)}; {arguments.num_images} samples against {len(reference)} real images", flush=True)
    print(f"{'sampler':16} {'calls':>6} {'eta':>5} {'fd':>8} {'kid':>9} {'± (std)':>9} {'seconds':>9}")
    for name, num_steps, eta in arguments.calls:
        started = time.perf_counter()
        pixels = draw(model, name, num_steps, eta, arguments.num_images, device)
        seconds = time.perf_counter() - started
        features = features_of(extractor, pixels, device)
        kernel = kernel_distance(reference, features, num_subsets=100, subset_size=min(500, len(features)))
        distance = frechet_distance(reference, features)
        print(
            f"{name:16} {num_steps:6} {eta:5.1f} {distance:8.2f} {kernel.mean:9.5f} {kernel.std:9.5f} {seconds:9.1f}",
            flush=True,
        )


def draw(
    model: PublishedModel, name: SamplerName, num_steps: int, eta: float, num_images: int, device: torch.device
) -> Tensor:
    """Return images 0 … num_images - 1 of seed 0, as bytes."""
    shape = (3, model.image_size, model.image_size)
    batches = []
    for start in range(0, num_images, BATCH_SIZE):
        noise = ImageNoise(0, range(start, min(start + BATCH_SIZE, num_images)), shape, device)
        with drawing(model.unet, "auto", device):
            batches.append(to_pixels(sample(name, model.unet, model.diffusion, noise, num_steps, eta)).cpu())
    return torch.cat(batches)


def features_of(extractor: FeatureExtractor, pixels: Tensor, device: torch.device) -> Tensor:
    """Return one feature vector per image."""
    return torch.cat(list(extract_features(extractor, pixels, BATCH_SIZE, device)))


def _sampler_and_calls(text: str) -> tuple[str, int, float]:
    name, calls, *eta = text.split(":")
    return name, int(calls), float(eta[0]) if eta else 0.0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a published model, such as build/model")
    parser.add_argument("reference", type=Path, help="array of real images, such as build/dataset/images.npy")
    parser.add_argument("--num-images", type=int, default=512, help="samples of each kind (default 512)")
    parser.add_argument("--num-reference", type=int, default=2048, help="real images (default 2048)")
    parser.add_argument(
        "--calls", type=_sampler_and_calls, nargs="+", default=[_sampler_and_calls(text) for text in DEFAULT_CALLS],
        metavar="SAMPLER:CALLS[:ETA]", help=f"what to draw by (default {' '.join(DEFAULT_CALLS)})",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    main()
