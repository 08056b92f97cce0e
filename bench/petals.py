"""Measure whether a class-conditional model draws the requested number of petals: `python -m bench.petals MODEL`.

A small network learns to count the petals of flowers that the project draws, different from those the model
was trained on, and classifies the model's samples at several scales of guidance. A model that ignores the class is
right once in five.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.machine import describe
from ddpm.devices import arithmetic, prepare_best_device
from ddpm.images import to_model_range, to_pixels
from ddpm.published import PublishedModel, load_model
from ddpm.samplers import ImageNoise, sample
from stages.datasets.synthetic.draws import PETAL_COUNTS
from stages.datasets.synthetic.flowers import generate

CHANCE = 1.0 / len(PETAL_COUNTS)

BATCH_SIZE = 100
_TRAINING_SEED, _HELD_OUT_SEED = 1001, 1002
"""Seeds of the classifier's flowers; a model's own flowers have the seed of its profile, such as 0."""


class PetalCounter(nn.Module):
    """Classifier of petal counts: logits of PETAL_COUNTS from images in [-1, 1] of the given size."""

    def __init__(self, image_size: int, width: int = 32) -> None:
        super().__init__()
        last = -(-image_size // 4)
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(2 * width * last * last, len(PETAL_COUNTS)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def draw_flowers(num_images: int, image_size: int, variety: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return drawn images, uint8 of shape (images, 3, size, size), and their petal counts."""
    images, petals = generate(num_images, image_size, seed, variety=variety)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(petals)


def train_counter(pixels: Tensor, petals: Tensor, num_epochs: int = 5, learning_rate: float = 3e-3) -> PetalCounter:
    """Train a counter on these images; the same images give the same counter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        counter = PetalCounter(pixels.shape[-1]).to(memory_format=torch.channels_last)
        labels = petals - PETAL_COUNTS[0]
        num_steps = num_epochs * (len(pixels) // BATCH_SIZE)
        optimizer = torch.optim.AdamW(counter.parameters(), weight_decay=0.05)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps)
        for _ in range(num_epochs):
            for batch in torch.split(torch.randperm(len(pixels)), BATCH_SIZE)[: len(pixels) // BATCH_SIZE]:
                x = to_model_range(pixels[batch])
                x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(counter(x), labels[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                rate.step()
    return counter.eval().requires_grad_(False)


def is_counted_right(counter: PetalCounter, pixels: Tensor, petals: Tensor) -> Tensor:
    """Return whether the counter finds `petals` in each image."""
    found = torch.cat([counter(to_model_range(part)).argmax(dim=1) for part in torch.split(pixels, BATCH_SIZE)])
    return found + PETAL_COUNTS[0] == petals


def draw_requested(
    model: PublishedModel,
    num_images: int,
    guidance_scale: float,
    num_sampling_steps: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return samples as bytes, all classes in turn, and the requested petals of each."""
    shape = (3, model.image_size, model.image_size)
    parts = []
    for start in range(0, num_images, BATCH_SIZE):
        numbers = range(start, min(start + BATCH_SIZE, num_images))
        predict = model.bind_classes(None, numbers, guidance_scale)
        noise = ImageNoise(0, numbers, shape, device)
        with arithmetic("auto", torch.device(device)):
            parts.append(to_pixels(sample("ddim", predict, model.diffusion, noise, num_sampling_steps)).cpu())
    petals = [model.classes[number % len(model.classes)].number for number in range(num_images)]
    return torch.cat(parts), torch.tensor(petals)


def main() -> None:
    arguments = _parse_arguments()
    device = prepare_best_device()
    model = load_model(arguments.model, device=device)
    if [each.number for each in model.classes] != list(PETAL_COUNTS):
        raise SystemExit(f"{arguments.model} was not trained on petal counts: its classes are {list(model.classes)}")
    print(f"{describe(device)}; {arguments.num_images} samples a scale; chance is {CHANCE:.0%}", flush=True)
    print(
        f"{'judged':28} {'right':>7} " + " ".join(f"{count:>3} petals" for count in PETAL_COUNTS) + f" {'seconds':>9}"
    )
    started = time.perf_counter()
    size = model.image_size
    counter = train_counter(*draw_flowers(arguments.num_training, size, arguments.variety, _TRAINING_SEED))
    held_out, petals = draw_flowers(1000, size, arguments.variety, _HELD_OUT_SEED)
    _print_row("real images, held out", is_counted_right(counter, held_out, petals), petals, started)
    for scale in arguments.scales:
        started = time.perf_counter()
        pixels, petals = draw_requested(model, arguments.num_images, scale, arguments.num_sampling_steps, device)
        _print_row(f"samples, guidance scale {scale:g}", is_counted_right(counter, pixels, petals), petals, started)


def _print_row(name: str, is_right: Tensor, petals: Tensor, started: float) -> None:
    shares = [is_right[petals == count].float().mean() for count in PETAL_COUNTS]
    cells = " ".join(f"{share:10.1%}" for share in shares)
    print(f"{name:28} {is_right.float().mean():7.1%} {cells} {time.perf_counter() - started:9.1f}", flush=True)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.petals", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a published model, such as build/model")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 1.0, 2.0, 3.0], help="(default 0 1 2 3)")
    parser.add_argument("--num-images", type=int, default=500, help="samples at each scale (default 500)")
    parser.add_argument("--num-sampling-steps", type=int, default=20, help="of DDIM (default 20)")
    parser.add_argument("--num-training", type=int, default=5000, help="real images to learn from (default 5000)")
    parser.add_argument("--variety", type=float, default=0.2, help="of the real images (default 0.2)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
