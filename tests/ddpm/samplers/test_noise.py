"""Noise, one independent stream per image."""

import pytest
import torch

from ddpm import GaussianDiffusion, ImageNoise, linear_betas, sample
from ddpm.samplers import InterpolatedNoise
from ddpm.samplers.noise import choose_block_size, slerp
from tests.ddpm.small_networks import SAMPLERS, Operations, bent_model

SHAPE = (3, 4, 5)


def in_blocks(noise, block_size):
    """Let noise be drawn in blocks, as on a GPU."""
    noise.block_size = block_size
    return noise


@pytest.mark.parametrize("block_size", [1, 4])
def test_noise_of_an_image_depends_on_seed_number_and_draw_alone(block_size):
    together, again, alone, turned = (
        in_blocks(ImageNoise(7, numbers, SHAPE), block_size) for numbers in ([0, 1, 2, 30], [0, 1, 2, 30], [2], [30, 2])
    )
    for seed in range(10):
        torch.manual_seed(seed)  # the global generator is neither used nor changed
        before = torch.get_rng_state()
        drawn = together.draw()
        assert drawn.shape == (4, *SHAPE)
        assert torch.equal(again.draw(), drawn)
        assert torch.equal(alone.draw()[0], drawn[2])
        assert torch.equal(turned.draw(), drawn[[3, 2]])
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("block_size", [1, 4])
def test_draws_images_and_seeds_differ(block_size):
    noise = in_blocks(ImageNoise(0, range(4), SHAPE), block_size)
    draws = [image for _ in range(10) for image in noise.draw()]
    # The first draw is that of any size of the block.
    assert torch.equal(torch.stack(draws[:4]), ImageNoise(0, range(4), SHAPE).draw())
    # Image 1 of seed 0 is not image 0 of seed 1.
    draws += list(ImageNoise(1, range(4), SHAPE).draw())
    for i, one in enumerate(draws):
        assert all((one - other).abs().max() > 0.1 for other in draws[:i])


@pytest.mark.parametrize(
    ("block_size", "num_draws", "num_kernels"),
    [(16, 1, 1), (16, 2, 2), (16, 17, 2), (16, 18, 3), (16, 1000, 64), (1, 18, 18)],
)
def test_blocks_save_random_kernels(block_size, num_draws, num_kernels):
    noise = in_blocks(ImageNoise(7, [0, 1, 2], SHAPE), block_size)
    with Operations() as operations:
        for _ in range(num_draws):
            noise.draw()
    assert operations.names.count("normal_") == 3 * num_kernels


@pytest.mark.parametrize(("image_size", "block_size"), [(24, 16), (64, 16), (128, 5), (256, 1), (1024, 1)])
def test_the_blocks_of_1024_images_take_no_more_than_a_gib(image_size, block_size):
    assert choose_block_size((3, image_size, image_size)) == block_size
    assert block_size == 1 or 1024 * block_size * 3 * image_size**2 * 4 <= 2**30


def test_noise_is_standard_normal():
    noise = ImageNoise(0, range(100), (3, 20, 20)).draw()
    count = noise.numel()  # 120,000
    # Five standard errors of mean, variance and fourth moment.
    assert abs(float(noise.mean())) < 5 / count**0.5
    assert float(noise.var()) == pytest.approx(1.0, abs=5 * (2 / count) ** 0.5)
    assert float((noise**4).mean()) == pytest.approx(3.0, abs=5 * (96 / count) ** 0.5)
    # Over the images as well as over the pixels.
    assert float(noise.mean(dim=(1, 2, 3)).std()) == pytest.approx(1200**-0.5, rel=0.36)


@pytest.mark.parametrize(("seed", "numbers"), [(-1, [0]), (0, [0, -1])])
def test_negative_seeds_and_numbers_are_an_error(seed, numbers):
    with pytest.raises(ValueError, match="must be at least 0"):
        ImageNoise(seed, numbers, SHAPE)


def test_slerp_turns_evenly_and_keeps_the_length_on_the_way():
    first, last = ImageNoise(0, [0, 1], SHAPE).draw()
    first, last = 2.0 * first / first.norm(), 2.0 * last / last.norm()
    on_the_way = slerp(first, last, torch.linspace(0.0, 1.0, 7))
    assert on_the_way.shape == (7, *SHAPE)
    torch.testing.assert_close(on_the_way.flatten(1).norm(dim=1), torch.full((7,), 2.0), rtol=0, atol=1e-5)
    cosines = (on_the_way[1:] * on_the_way[:-1]).sum(dim=(1, 2, 3)) / 4.0
    angle = float(torch.arccos((first * last).sum() / 4.0))
    torch.testing.assert_close(torch.arccos(cosines), torch.full((6,), angle / 6), rtol=0, atol=2e-3)


@pytest.mark.parametrize("block_size", [1, 4])
def test_interpolated_noise_has_its_ends_among_it_in_every_draw(block_size):
    ends = in_blocks(ImageNoise(7, [5, 2], SHAPE), block_size)
    between = in_blocks(InterpolatedNoise(7, (5, 2), torch.linspace(0.0, 1.0, 5), SHAPE), block_size)
    for _ in range(6):
        (first, last), drawn = ends.draw(), between.draw()
        torch.testing.assert_close(drawn[0], first, rtol=0, atol=1e-6)
        torch.testing.assert_close(drawn[-1], last, rtol=0, atol=1e-6)
        torch.testing.assert_close(drawn, slerp(first, last, torch.linspace(0.0, 1.0, 5)), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "eta"), SAMPLERS)
def test_the_ends_of_an_interpolation_are_the_two_images(name, eta):
    diffusion = GaussianDiffusion(linear_betas(20, 1e-4, 0.3))
    images = sample(name, bent_model, diffusion, ImageNoise(3, [4, 9], SHAPE), 10, eta)
    between = InterpolatedNoise(3, (4, 9), torch.linspace(0.0, 1.0, 9), SHAPE)
    drawn = sample(name, bent_model, diffusion, between, 10, eta)
    torch.testing.assert_close(drawn[[0, -1]], images, rtol=0, atol=1e-4)
    # Neighbours are closer to each other than the ends.
    steps = (drawn[1:] - drawn[:-1]).square().mean(dim=(1, 2, 3))
    assert steps.max() < (images[0] - images[1]).square().mean()


def test_an_interpolation_from_an_image_to_itself_is_an_error():
    with pytest.raises(ValueError, match="must differ, got image 4 twice"):
        InterpolatedNoise(3, (4, 4), torch.tensor([0.5]), SHAPE)
