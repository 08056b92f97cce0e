"""Seeds of independent random streams.

All randomness of a run comes from (seed, number): an image's number when sampling, a step's when training. What happened
before does not matter, so a resumed run draws what an uninterrupted one would.
"""


def stream_seed(seed: int, number: int) -> int:
    """A 63-bit seed for stream `number` of `seed`: two rounds of SplitMix64's finaliser (Steele et al. 2014).

    Raises:
        ValueError: an argument is negative.
    """
    if seed < 0 or number < 0:
        raise ValueError(f"seeds and stream numbers must be at least 0, got seed={seed}, number={number}")
    mask = (1 << 64) - 1
    state = seed & mask
    for word in (number, 0x9E3779B97F4A7C15):
        state = (state + word + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1
