"""Noise, one independent stream an image."""

import pytest
import torch

from ddpm import ImageNoise

SHAPE = (3, 4, 5)


def test_noise_of_an_image_does_not_depend_on_its_batch():
    together = ImageNoise(7, [0, 1, 2, 30], SHAPE)
    alone = ImageNoise(7, [2], SHAPE)
    turned = ImageNoise(7, [30, 2], SHAPE)
    for _ in range(3):
        drawn, drawn_alone, drawn_turned = together.draw(), alone.draw(), turned.draw()
        assert drawn.shape == (4, *SHAPE)
        assert torch.equal(drawn_alone[0], drawn[2])
        assert torch.equal(drawn_turned, drawn[[3, 2]])


def test_noise_is_the_same_for_the_same_seed():
    first, second = ImageNoise(7, [0, 1], SHAPE), ImageNoise(7, [0, 1], SHAPE)
    torch.manual_seed(99)
    assert torch.equal(first.draw(), second.draw())
    assert torch.equal(first.draw(), second.draw())


def test_draws_images_and_seeds_differ():
    noise = ImageNoise(0, range(10), SHAPE)
    draws = [image for _ in range(3) for image in noise.draw()]
    # Image 1 of seed 0 is not image 0 of seed 1.
    draws += list(ImageNoise(1, range(10), SHAPE).draw())
    for i, one in enumerate(draws):
        assert all((one - other).abs().max() > 0.1 for other in draws[:i])


def test_noise_is_standard_normal():
    noise = ImageNoise(0, range(100), (3, 20, 20)).draw()
    count = noise.numel()  # 120,000
    # Five standard errors of mean, variance and fourth moment.
    assert abs(float(noise.mean())) < 5 / count**0.5
    assert float(noise.var()) == pytest.approx(1.0, abs=5 * (2 / count) ** 0.5)
    assert float((noise**4).mean()) == pytest.approx(3.0, abs=5 * (96 / count) ** 0.5)
    # Over the images as well as over the pixels.
    assert float(noise.mean(dim=(1, 2, 3)).std()) == pytest.approx(1200**-0.5, rel=0.36)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    ImageNoise(0, [0, 1], SHAPE).draw()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("seed", "numbers"), [(-1, [0]), (0, [0, -1])])
def test_negative_seeds_and_numbers_are_an_error(seed, numbers):
    with pytest.raises(ValueError, match="must be at least 0"):
        ImageNoise(seed, numbers, SHAPE)
