"""The Fréchet and kernel distances: against scipy, closed forms and the formula written out."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from ddpm.metrics import frechet_distance, kernel_distance


def features(count, dim, seed, mean=0.0, std=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (mean + std * torch.randn(count, dim, generator=generator, dtype=torch.float64)).to(dtype)


def mixed(count, dim, seed):
    """Features whose coordinates hang together, as those of a network do."""
    mixture = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    return features(count, dim, seed, mean=0.3 * seed) @ mixture


def test_frechet_distance_equals_the_formula_with_scipys_root():
    real, fake = mixed(200, 8, 0), mixed(150, 8, 1)
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (real, fake)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    difference = (real.mean(0) - fake.mean(0)).numpy()
    expected = difference @ difference + np.trace(covariances[0] + covariances[1] - 2.0 * root.real)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)
    # Features are float32 in practice.
    assert frechet_distance(real.float(), fake.float()) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_known_gaussians():
    # |m|^2 + d (1 - s)^2 between N(0, 1) and N(m, s^2) in d independent coordinates. With 20,000 samples each mean and
    # deviation is known to 0.7 %.
    dim, mean, std = 4, 0.5, 2.0
    distance = frechet_distance(features(20_000, dim, 0), features(20_000, dim, 1, mean, std))
    assert distance == pytest.approx(dim * (mean**2 + (1.0 - std) ** 2), rel=0.03)


def test_frechet_distance_is_symmetric_and_blind_to_order():
    real, fake = mixed(60, 5, 0), mixed(80, 5, 1)
    distance = frechet_distance(real, fake)
    assert frechet_distance(fake, real) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(real.flip(0), fake) == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize(("count", "dim"), [(100, 8), (10, 40)])
def test_frechet_distance_of_a_set_to_itself_is_zero(count, dim):
    # Also where images are fewer than features, so that covariances are singular: roots of rounding errors remain.
    x = mixed(count, dim, 0)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-4)


def kernel_by_hand(real, fake):
    """Bińkowski et al. 2018, Eq. 4: the unbiased estimator, pair by pair."""

    def kernel(x, y):
        return (float(np.dot(x, y)) / len(x) + 1.0) ** 3

    m, n = len(real), len(fake)
    within_real = sum(kernel(real[i], real[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_fake = sum(kernel(fake[i], fake[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    between = sum(kernel(x, y) for x in real for y in fake) / (m * n)
    return within_real + within_fake - 2.0 * between


@pytest.mark.parametrize("subset_size", [40, 1000])
def test_kernel_distance_of_whole_sets_equals_the_formula(subset_size):
    # A subset as large as the set, or larger, is the set: each subset gives the same, and none can be larger.
    real, fake = features(40, 6, 0), features(40, 6, 1, mean=0.4)
    distance = kernel_distance(real, fake, num_subsets=3, subset_size=subset_size)
    assert distance.mean == pytest.approx(kernel_by_hand(real.numpy(), fake.numpy()), rel=1e-6)
    assert distance.std == pytest.approx(0.0, abs=1e-6)
    single = kernel_distance(real.float(), fake.float(), num_subsets=1, subset_size=subset_size)
    assert single.mean == pytest.approx(distance.mean, rel=1e-3)


def test_kernel_distance_takes_the_smaller_sets_count():
    real, fake = features(40, 6, 0), features(25, 6, 1, mean=0.4)
    distance = kernel_distance(real, fake, num_subsets=200, subset_size=1000)
    # The fake set is whole in each subset, the real one varies.
    assert distance.std > 0.0
    assert distance.mean == pytest.approx(kernel_by_hand(real.numpy(), fake.numpy()), abs=5 * distance.std / 200**0.5)


def test_kernel_distance_is_the_mean_over_subsets():
    real, fake = features(300, 6, 0), features(300, 6, 1, mean=0.4)
    distance = kernel_distance(real, fake, num_subsets=100, subset_size=100)
    assert distance.std > 0.0
    # Five standard errors of the mean.
    assert distance.mean == pytest.approx(kernel_by_hand(real.numpy(), fake.numpy()), abs=5 * distance.std / 10)


def test_kernel_distance_of_equal_distributions_is_about_zero_on_either_side():
    means = [
        kernel_distance(features(50, 6, 2 * seed), features(50, 6, 2 * seed + 1), num_subsets=1, subset_size=50).mean
        for seed in range(40)
    ]
    assert min(means) < 0.0 < max(means)
    assert abs(np.mean(means)) < 5 * np.std(means) / math.sqrt(40)


def test_the_seed_decides_the_subsets():
    real, fake = features(100, 6, 0), features(100, 6, 1, mean=0.4)
    distances = [kernel_distance(real, fake, num_subsets=5, subset_size=20, seed=seed) for seed in (1, 1, 2)]
    assert distances[0] == distances[1] != distances[2]


def test_no_global_generator_is_used_or_changed(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    real, fake = features(30, 6, 0), features(30, 6, 1)
    distances = []
    for seed in (1, 2):
        torch.default_generator.manual_seed(seed)
        before = torch.get_rng_state()
        distances.append(kernel_distance(real, fake, num_subsets=5, subset_size=20))
        assert torch.equal(torch.get_rng_state(), before)
    assert distances[0] == distances[1]
    assert not seeded  # nor that of an accelerator, which torch.manual_seed would set


def test_one_feature_more_than_the_other_is_an_error():
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(TypeError, match="parameter 'fake'"):
            distance(features(10, 5, 0), features(10, 6, 1))


@pytest.mark.parametrize(("num_real", "num_fake"), [(1, 10), (10, 1), (0, 10)])
def test_sets_of_fewer_than_two_images_are_an_error(num_real, num_fake):
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match=f"at least 2 images, got {num_real} real and {num_fake} generated"):
            distance(features(num_real, 4, 0), features(num_fake, 4, 1))
