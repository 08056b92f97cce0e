"""A training of a few steps, and comparisons of its results."""

import dataclasses

import torch

from ddpm import GaussianDiffusion, TrainingConfig, TrainingImages, TrainingState, UNet, linear_betas, train
from tests.ddpm.small_networks import TINY

NUM_STEPS = 12

# Every part that keeps something from step to step: a changing rate, clipping, a changing decay.
CONFIG = TrainingConfig(
    num_steps=NUM_STEPS,
    learning_rate=3e-3,
    rate_schedule="cosine",
    warmup_steps=3,
    gradient_clip=0.5,
    ema_decay=0.9,
    ema_warmup=True,
    precision="float32",
)

SHORT = TrainingConfig(num_steps=3, learning_rate=1e-2, ema_decay=0.5, precision="float32")
EXTRA = dataclasses.replace(SHORT, extra_ema_decays=(0.9999, 0.9))


def start(config=CONFIG, seed=0, **changes):
    """Make the state before the first step; the seed decides the weights."""
    torch.manual_seed(seed)
    return TrainingState.start(UNet(dataclasses.replace(TINY, **changes)), config)


def make_images(batch_size=4, **options):
    """Make batches of ten images of noise, always the same."""
    pixels = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TrainingImages(pixels, batch_size, seed=1, **options)


def snapshot(state):
    """Return everything that training changes, by name."""
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in state.ema.module.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": moment for name, moment in moments.items()}
    tensors["numbers"] = torch.tensor([state.step, state.ema.num_updates])
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same_bits(snapshot_1, snapshot_2):
    assert snapshot_1.keys() == snapshot_2.keys()
    for name, tensor in snapshot_1.items():
        torch.testing.assert_close(tensor, snapshot_2[name], rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}")


def assert_same_weights(module, other):
    assert_same_bits(module.state_dict(), other.state_dict())


def train_to_the_end(state, config):
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = TrainingImages(pixels, 2, seed=0, device=next(state.model.parameters()).device)
    for _ in train(state, images, GaussianDiffusion(linear_betas(10)), config):
        pass
    return state


def fields(event):
    return event.step, event.num_images_seen, float(event.loss), event.learning_rate
