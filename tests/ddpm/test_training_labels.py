"""Training with classes: the network gets or misses labels by (seed, step) alone."""

import dataclasses

import pytest
import torch

from ddpm import GaussianDiffusion, TrainingConfig, TrainingImages, linear_betas, train
from ddpm.classes import NO_CLASS
from ddpm.training import draw_batch
from tests.ddpm.small_training import CONFIG, NUM_STEPS, make_images, start

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def labels_of_steps(images, num_steps=100, seed=0, label_dropout=0.25):
    return torch.stack([draw_batch(images, step, seed, 20, label_dropout).labels for step in range(num_steps)])


def test_the_network_gets_the_labels_of_its_images(diffusion):
    images, seen = make_images(labels=LABELS), []
    config = dataclasses.replace(CONFIG, label_dropout=0.0)
    state = start(config, num_classes=3)
    state.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    assert len(list(train(state, images, diffusion, config))) == NUM_STEPS
    for step, labels in enumerate(seen):
        assert labels.tolist() == LABELS[images.indices(step)].tolist()


def test_labels_are_dropped_at_random_with_their_probability():
    images = make_images(labels=LABELS, batch_size=10)
    drawn = labels_of_steps(images, num_steps=400)
    given = torch.stack([images.batch_labels(step) for step in range(400)])
    is_dropped = drawn == NO_CLASS
    assert torch.equal(drawn, labels_of_steps(images, num_steps=400))  # by seed and step alone
    assert not torch.equal(drawn, labels_of_steps(images, num_steps=400, seed=1))
    assert torch.equal(drawn[~is_dropped], given[~is_dropped])
    for label_dropout in (0.0, 1.0):
        all_or_none = labels_of_steps(images, num_steps=5, label_dropout=label_dropout) == NO_CLASS
        assert all_or_none.float().mean() == label_dropout
    # 4,000 labels; five standard deviations are 0.034.
    assert abs(float(is_dropped.float().mean()) - 0.25) < 0.034
    assert len({tuple(row) for row in is_dropped.tolist()}) > 100  # drawn anew in each step


def test_labels_change_neither_images_nor_time_steps_nor_noise():
    with_labels, without = make_images(labels=LABELS), make_images()
    for step in range(5):
        one, other = (draw_batch(images, step, 0, 20, 0.5) for images in (with_labels, without))
        assert other.labels is None
        for name in ("x_0", "t", "eps"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)


def test_it_learns_what_a_class_looks_like():
    """Images of class 0 are black, of class 1 white: only the label tells, since x_t is nearly all noise."""
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 8, 8).contiguous()
    images = TrainingImages(pixels, batch_size=8, seed=0, labels=torch.tensor([0, 1]))
    diffusion = GaussianDiffusion(linear_betas(20, 0.2, 0.5), "x_0")
    config = TrainingConfig(num_steps=40, learning_rate=1e-2, label_dropout=0.5, precision="float32")
    state = start(config, num_classes=2)
    for _ in train(state, images, diffusion, config):
        pass
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    t, unet = torch.full((2,), 19), state.model.eval()
    with torch.no_grad():
        with_labels = unet(noise, t, torch.tensor([0, 1])).mean(dim=(1, 2, 3))
        without = unet(noise, t).mean(dim=(1, 2, 3))
    # Without its class the noise decides, and one gets both images or something between them.
    assert with_labels[0] < -0.7 and with_labels[1] > 0.7
    assert without.abs().max() < 0.9 * with_labels.abs().min()


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        (None, 3, "the network knows 3 classes, so the images need labels, got none"),
        (LABELS, 2, r"labels must lie in 0 … 1, or be -1 for no class, got 0 … 2"),
        (LABELS - 2, 3, r"labels must lie in 0 … 2, or be -1 for no class, got -2 … 0"),
        (LABELS, None, "the network knows no classes, got labels"),
    ],
)
def test_labels_that_do_not_fit_the_network_are_an_error(diffusion, labels, num_classes, message):
    with pytest.raises(ValueError, match=message):
        next(train(start(num_classes=num_classes), make_images(labels=labels), diffusion, CONFIG))
