"""Copies are found, and new images of the same kind are no copies."""

import pytest
import torch

from ddpm.memorisation import EXPECTED_SHARE, memorisation, nearest_images


def drawn(count, seed, dim=8):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_images_are_those_of_the_least_distance():
    features, training = drawn(300, 0), drawn(40, 1)
    nearest = nearest_images(features, training)
    distances = (features[:, None] - training[None]).square().sum(dim=2).sqrt()
    torch.testing.assert_close(nearest.distances, distances.min(dim=1).values, rtol=1e-5, atol=1e-6)
    assert torch.equal(nearest.indices, distances.argmin(dim=1))


def test_a_copy_is_at_no_distance_however_large_its_features():
    training = 1e3 + drawn(30, 0, dim=200)
    nearest = nearest_images(training[[4, 2]], training)
    assert nearest.distances.tolist() == [0.0, 0.0] and nearest.indices.tolist() == [4, 2]


def compared(generated, training, held_out):
    return memorisation(nearest_images(generated, training).distances, nearest_images(held_out, training).distances)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_copies_are_found_even_with_some_noise(noise):
    training, held_out = drawn(500, 0), drawn(400, 1)
    found = compared(training[:200] + noise * drawn(200, 2), training, held_out)
    assert found.share == 1.0
    assert found.nearer_than_held_out > 0.999


def test_a_few_copies_among_bad_images_raise_the_share_alone():
    training, held_out = drawn(500, 0), drawn(400, 1)
    found = compared(torch.cat([training[:40], drawn(160, 2) + 9.0]), training, held_out)
    assert found.share == pytest.approx(0.2)
    assert found.nearer_than_held_out == pytest.approx(0.2)


def test_new_images_of_the_same_kind_are_as_near_as_held_out_ones():
    # 4,000 of each: the share's standard error is 0.5 %, that of the probability 0.65 %; four of them are allowed.
    training = drawn(500, 0)
    found = compared(drawn(4000, 1), training, drawn(4000, 2))
    assert found.share == pytest.approx(EXPECTED_SHARE, abs=0.02)
    assert found.nearer_than_held_out == pytest.approx(0.5, abs=0.026)


def test_the_figures_by_hand():
    held_out = torch.arange(1.0, 22.0)  # 1 … 21: its twentieth ends at 2
    found = memorisation(torch.tensor([0.0, 1.5, 2.0, 30.0]), held_out)
    assert found.threshold == pytest.approx(2.0)
    assert found.share == 0.5  # 2.0 itself is not nearer
    # Pairs won: 21, 20, and 19 with half a pair for the tie, and none.
    assert found.nearer_than_held_out == pytest.approx((21 + 20 + 19.5) / (4 * 21))


def test_without_images_there_is_nothing_to_compare():
    for num_generated, num_held_out in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match=f"got {num_generated} and {num_held_out}"):
            memorisation(torch.ones(num_generated), torch.ones(num_held_out))
    with pytest.raises(ValueError, match="at least one training image"):
        nearest_images(drawn(3, 0), drawn(0, 1))
