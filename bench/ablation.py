"""Measure what each change to the published setting gains for the same number of images: `python -m bench.ablation`.

A small network learns the prepared dataset (`preprocess.image_size` decides its size) from the published choices, from
them with one change each, and from four changes together; always the same seed, number of steps and batch size, and a
warmed-up moving average. Samples are compared with the valid split, which none of them learns from, on
EfficientNet-Lite0's features.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bench.machine import describe
from bench.quality import draw, features_of
from ddpm.config import DiffusionConfig, TrainingConfig, UNetConfig
from ddpm.data import TrainingImages
from ddpm.devices import prepare_best_device
from ddpm.diffusion import build_diffusion
from ddpm.features import build_extractor
from ddpm.metrics import frechet_distance, kernel_distance
from ddpm.published import PublishedModel
from ddpm.training import train
from ddpm.training_state import TrainingState
from ddpm.unet import UNet
from stages.datasets.prepared import all_images, positions_of


@dataclass(frozen=True)
class Variant:
    """Differences of one training from the published setting."""

    training: TrainingConfig
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    splits: Sequence[str] = ("train",)
    random_flips: bool = True


def variants_of(published: Variant) -> dict[str, Variant]:
    """Return the published setting, one change at a time, and four changes together."""
    training, diffusion = published.training, published.diffusion
    more_data = ("train", "test")
    falling = replace(training, rate_schedule="cosine", warmup_steps=training.num_steps // 50)
    return {
        "published": published,
        "train and test splits": replace(published, splits=more_data),
        "cosine schedule": replace(published, diffusion=replace(diffusion, schedule="cosine")),
        "v prediction": replace(published, diffusion=replace(diffusion, prediction="v")),
        "min-SNR weights": replace(published, training=replace(training, min_snr_gamma=5.0)),
        "falling rate": replace(published, training=falling),
        "rate 1e-3, falling": replace(published, training=replace(falling, learning_rate=1e-3)),
        "EMA 0.99": replace(published, training=replace(training, ema_decay=0.99)),
        "without flips": replace(published, random_flips=False),
        "splits, cosine, v, falling": Variant(
            falling, replace(diffusion, schedule="cosine", prediction="v"), more_data
        ),
    }


def main() -> None:
    arguments = _parse_arguments()
    device = prepare_best_device()
    # Of so few steps an average that is not warmed up would hold the initial weights above all.
    training = TrainingConfig(num_steps=arguments.steps, seed=arguments.seed, ema_warmup=True)
    variants = variants_of(Variant(training))
    extractor = build_extractor("efficientnet_lite0", device)
    reference = features_of(extractor, all_images()[positions_of(["valid"])], device)
    size = all_images().shape[-1]
    print(
        f"{describe(device)}; {arguments.steps} steps of {arguments.batch_size} images of {size}x{size}; "
        f"{arguments.num_images} samples against {len(reference)} images of the valid split",
        flush=True,
    )
    print(f"{'':26} {'fd':>8} {'kid':>9} {'± (95 %)':>9} {'loss':>8} {'seconds':>9}", flush=True)
    for name in arguments.variants or variants:
        started = time.perf_counter()
        model, loss = train_variant(variants[name], arguments, device)
        pixels = draw(model, "ddim", arguments.calls, 1.0, arguments.num_images, device)
        features = features_of(extractor, pixels, device)
        kernel = kernel_distance(reference, features, num_subsets=100, subset_size=min(500, len(features)))
        distance = frechet_distance(reference, features)
        print(
            f"{name:26} {distance:8.2f} {kernel.mean:9.5f} {(kernel.high - kernel.low) / 2:9.5f} {loss:8.4f} "
            f"{time.perf_counter() - started:9.1f}",
            flush=True,
        )


def train_variant(
    variant: Variant, arguments: argparse.Namespace, device: torch.device
) -> tuple[PublishedModel, float]:
    """Train, and return the averaged network and the mean loss of the last tenth of the steps."""
    torch.manual_seed(variant.training.seed)
    attention = tuple(level == len(arguments.widths) - 1 for level in range(len(arguments.widths)))
    unet = UNet(UNetConfig(widths=tuple(arguments.widths), attention=attention, num_res_blocks=1)).to(device)
    images = TrainingImages(
        all_images(),
        arguments.batch_size,
        variant.training.seed,
        variant.random_flips,
        device,
        positions=positions_of(variant.splits),
    )
    state = TrainingState.start(unet, variant.training)
    diffusion = build_diffusion(variant.diffusion)
    losses: list[Tensor] = [event.loss for event in train(state, images, diffusion, variant.training)]
    assert isinstance(state.ema.module, UNet)
    model = PublishedModel(state.ema.module, diffusion.to(device), images.images.shape[-1])
    return model, float(torch.stack(losses[-max(1, len(losses) // 10) :]).mean())


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.ablation", description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of each training (default 2000)")
    parser.add_argument("--batch-size", type=int, default=32, help="images of a step (default 32, as published)")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128], help="channels of each level")
    parser.add_argument("--num-images", type=int, default=512, help="samples of each (default 512)")
    parser.add_argument("--calls", type=int, default=50, help="network calls an image, by DDIM with eta 1 (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of all trainings (default 0)")
    names = list(variants_of(Variant(TrainingConfig())))
    parser.add_argument(
        "--variants", nargs="+", choices=names, metavar="NAME", help=f"which to train (default all: {', '.join(names)})"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
