"""The time steps that a sampler visits."""

import pytest

from ddpm.samplers.timesteps import trailing_timesteps


@pytest.mark.parametrize(
    ("num_timesteps", "num_sampling_steps", "expected"),
    [
        (1, 1, [0]),
        (10, 1, [9]),
        (10, 3, [9, 6, 2]),  # 10, 6.67, 3.33, rounded, less 1
        (10, 5, [9, 7, 5, 3, 1]),
        (1000, 4, [999, 749, 499, 249]),
    ],
)
def test_some_choices_by_hand(num_timesteps, num_sampling_steps, expected):
    assert trailing_timesteps(num_timesteps, num_sampling_steps) == expected


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 50, 97])
def test_they_fall_strictly_from_the_last_time_step_in_even_gaps(num_timesteps):
    for num_sampling_steps in range(1, num_timesteps + 1):
        timesteps = trailing_timesteps(num_timesteps, num_sampling_steps)
        assert len(timesteps) == num_sampling_steps
        assert timesteps[0] == num_timesteps - 1
        gaps = [a - b for a, b in zip(timesteps, [*timesteps[1:], -1], strict=True)]
        even = num_timesteps / num_sampling_steps
        assert all(gap >= 1 and abs(gap - even) <= 1 for gap in gaps)
