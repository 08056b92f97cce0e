"""Distances, precision and recall: against closed forms, scipy and the formulas written out."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ddpm.metrics import frechet_distance, kernel_distance, kernel_distance_error, precision_recall


def features(count, dim, seed, mean=0.0, std=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (mean + std * torch.randn(count, dim, generator=generator, dtype=torch.float64)).to(dtype)


def mixed(count, dim, seed):
    """Features with correlated coordinates, as those of a network."""
    mixture = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    return features(count, dim, seed, mean=0.3 * seed) @ mixture


def test_frechet_distance_equals_the_formula():
    real, fake = mixed(120, 16, 0), mixed(90, 16, 1)
    (m_r, c_r), (m_f, c_f) = ((x.mean(dim=0).numpy(), np.cov(x.numpy(), rowvar=False)) for x in (real, fake))
    expected = np.sum((m_r - m_f) ** 2) + np.trace(c_r + c_f - 2.0 * sqrtm(c_r @ c_f).real)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)
    # Features are float32 in practice.
    assert frechet_distance(real.float(), fake.float()) == pytest.approx(expected, rel=1e-4)


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


@pytest.mark.parametrize(
    # In the second case the smaller set is whole in each subset, and the other varies.
    ("num_real", "num_fake", "num_subsets", "subset_size"),
    [(300, 300, 100, 100), (40, 25, 200, 1000)],
)
def test_kernel_distance_is_the_mean_over_subsets(num_real, num_fake, num_subsets, subset_size):
    real, fake = features(num_real, 6, 0), features(num_fake, 6, 1, mean=0.4)
    distance = kernel_distance(real, fake, num_subsets, subset_size)
    assert distance.std > 0.0
    # Five standard errors of the mean.
    tolerance = 5 * distance.std / num_subsets**0.5
    assert distance.mean == pytest.approx(kernel_by_hand(real.numpy(), fake.numpy()), abs=tolerance)


def test_the_seed_alone_decides_the_subsets():
    real, fake = features(100, 6, 0), features(100, 6, 1)
    distances = []
    for global_seed, seed in enumerate((1, 1, 2)):
        torch.default_generator.manual_seed(global_seed)
        before = torch.get_rng_state()
        distances.append(kernel_distance(real, fake, num_subsets=5, subset_size=20, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
    assert distances[0] == distances[1] != distances[2]
    assert distances[0] == kernel_distance(real, fake, num_subsets=5, subset_size=20, seed=2**62 + 1)


def known_kernel_distance(mean, std, dim):
    """Kernel distance of N(0, 1) and N(mean, std^2) in `dim` coordinates: squared differences of the first moments.

    (x.y / d + 1)^3 is the sum over p of binomial(3, p) (x.y / d)^p, and E (x.y)^p the inner product of the tensors of
    p-th moments.
    """
    unit = np.eye(dim)

    def moments(m, variance):
        m = np.full(dim, m)
        second = np.outer(m, m) + variance * unit
        third = np.einsum("i,j,k->ijk", m, m, m) + variance * (
            np.einsum("i,jk->ijk", m, unit) + np.einsum("j,ik->ijk", m, unit) + np.einsum("k,ij->ijk", m, unit)
        )
        return m, second, third

    pairs = zip((3, 3, 1), moments(0.0, 1.0), moments(mean, std**2), strict=True)
    return sum(
        weight * ((one - other) ** 2).sum() / dim**power for power, (weight, one, other) in enumerate(pairs, start=1)
    )


def repeated(count, mean, std, dim=4, size=200, **options):
    """Kernel distances of `count` pairs of sets of such Gaussians."""
    return [
        kernel_distance(features(size, dim, 2 * seed), features(size, dim, 2 * seed + 1, mean, std), **options)
        for seed in range(count)
    ]


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (0.3, 0.7)])
def test_kernel_distance_of_known_gaussians_lies_in_its_interval(mean, std):
    expected = known_kernel_distance(mean, std, dim=4)
    found = repeated(500, mean, std, num_subsets=10, subset_size=100)
    means = np.array([one.mean for one in found])
    assert means.mean() == pytest.approx(expected, abs=4 * means.std() / math.sqrt(500))
    # 95 % of 500 intervals hold the truth, give or take 1 % (binomial); three of these.
    assert np.mean([one.low <= expected <= one.high for one in found]) == pytest.approx(0.95, abs=0.03)
    # Nor is it wide for nothing: as wide as the distances spread.
    width = np.mean([one.high - one.low for one in found]) / (2 * 1.96)
    assert width == pytest.approx(means.std(), rel=0.15)


def test_the_interval_of_equal_distributions_holds_zero_often_enough():
    found = repeated(300, 0.0, 1.0, num_subsets=1, subset_size=200)
    assert np.mean([one.low <= 0.0 <= one.high for one in found]) >= 0.95
    # There the jackknife's variance is up to twice the true one, and by no means smaller.
    ratio = np.mean([((one.high - one.low) / (2 * 1.96)) ** 2 for one in found]) / np.var([one.mean for one in found])
    assert 1.2 <= ratio <= 2.4


def test_the_error_is_the_jackknife_written_out():
    real, fake = features(9, 3, 0).numpy(), features(7, 3, 1, mean=0.4).numpy()
    variance = 0.0
    for count, distances in (
        (9, [kernel_by_hand(np.delete(real, i, axis=0), fake) for i in range(9)]),
        (7, [kernel_by_hand(real, np.delete(fake, i, axis=0)) for i in range(7)]),
    ):
        variance += (count - 1) / count * sum((one - np.mean(distances)) ** 2 for one in distances)
    error = kernel_distance_error(torch.from_numpy(real), torch.from_numpy(fake))
    assert error == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_the_error_of_large_sets_does_not_depend_on_their_order():
    # Above 1,024 images the kernel is computed in parts.
    real, fake = features(1100, 3, 0), features(1050, 3, 1, mean=0.4)
    error = kernel_distance_error(real, fake)
    order = torch.randperm(1100, generator=torch.Generator().manual_seed(0))
    assert kernel_distance_error(real[order], fake.flip(0)) == pytest.approx(error, rel=1e-12)


def test_the_interval_holds_the_error_of_images_and_of_subsets():
    real, fake = features(80, 3, 0), features(70, 3, 1, mean=0.4)
    error = kernel_distance_error(real, fake)
    for num_subsets in (2, 50):
        found = kernel_distance(real, fake, num_subsets=num_subsets, subset_size=20)
        expected = math.sqrt(error**2 + found.std**2 / num_subsets)
        assert found.high - found.mean == pytest.approx(1.959964 * expected)
        assert found.mean - found.low == pytest.approx(1.959964 * expected)


def shares_by_hand(real, fake, k):
    """Kynkäänniemi et al. 2019, Eq. 1 and 2, image by image."""

    def share_within(points, of):
        radii = [sorted(np.linalg.norm(of - centre, axis=1))[k] for centre in of]  # the first is the centre itself
        inside = [any(np.linalg.norm(point - c) <= r for c, r in zip(of, radii, strict=True)) for point in points]
        return sum(inside) / len(points)

    return share_within(fake, real), share_within(real, fake)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_the_definition(k):
    real, fake = features(40, 3, 0), features(30, 3, 1, mean=0.8, std=0.6)
    found = precision_recall(real.float(), fake.float(), neighbourhood=k)
    precision, recall = shares_by_hand(real.numpy(), fake.numpy(), k)
    assert found.precision == pytest.approx(precision) and found.recall == pytest.approx(recall)
    assert 0.0 < recall < precision < 1.0


@pytest.mark.parametrize(
    ("distance", "least"),
    [(frechet_distance, 2), (kernel_distance, 3), (kernel_distance_error, 3), (precision_recall, 4)],
)
def test_sets_of_too_few_images_are_an_error(distance, least):
    for num_real, num_fake in ((least - 1, 10), (10, least - 1), (0, 10)):
        with pytest.raises(ValueError, match=f"at least {least} images, got {num_real} real and {num_fake} generated"):
            distance(features(num_real, 4, 0), features(num_fake, 4, 1))
