"""Seeds of independent random streams.

All randomness of a run comes from (seed, number): in sampling the number of an image, in training that of a step. It
does not depend on earlier draws, so a resumed run draws the same numbers as an uninterrupted one.
"""


def stream_seed(seed: int, number: int) -> int:
    """Return a 63-bit seed for stream `number` of `seed`: two rounds of SplitMix64's finaliser (Steele et al. 2014).

    The seed goes through a round of its own before the number is added: with a plain sum, image 1 of seed 0 would equal
    image 0 of seed 1.

    Raises:
        ValueError: an argument is negative.
    """
    if seed < 0 or number < 0:
        raise ValueError(f"seeds and stream numbers must be at least 0, got seed={seed}, number={number}")
    mask = (1 << 64) - 1
    state = 0
    for word in (seed, number):
        state = (state + word + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1
