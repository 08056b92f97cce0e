"""Seeds of independent streams."""

import pytest

from ddpm.seeds import stream_seed

MASK = (1 << 64) - 1


def splitmix64(state):
    """Return the next output of SplitMix64 at `state`, as published by Vigna."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_a_seed_is_two_rounds_of_splitmix64():
    # The published first output for the seed 1234567.
    assert splitmix64(1234567) == 6457827717110365317
    for seed, number in [(0, 0), (0, 1), (1, 0), (1234567, 89), (2**63 - 1, 2**41 + 3)]:
        assert stream_seed(seed, number) == splitmix64((splitmix64(seed) + number) & MASK) >> 1


def test_no_two_streams_share_a_seed():
    # Neighbouring seeds most of all: a seed and a number that were only added would meet at once.
    numbers = [*range(200), *range(1 << 32, (1 << 32) + 200), *range(1 << 40, (1 << 40) + 200)]
    seeds = [stream_seed(seed, number) for seed in range(60) for number in numbers]
    assert len(set(seeds)) == len(seeds) == 36_000


@pytest.mark.parametrize(("seed", "number"), [(-1, 0), (0, -1)])
def test_a_negative_argument_is_an_error(seed, number):
    with pytest.raises(ValueError, match=f"at least 0, got seed={seed}, number={number}"):
        stream_seed(seed, number)
