"""The learning rate of each step."""

import math

import pytest

from ddpm import TrainingConfig
from ddpm.training_state import learning_rate_at

WARMUP = [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1.0] * 10),
        ({"warmup_steps": 4}, [*WARMUP, *[1.0] * 6]),
        # Loshchilov & Hutter 2017, Eq. 5: half way down at half time.
        ({"rate_schedule": "cosine"}, [0.5 + 0.5 * math.cos(math.pi * k / 10) for k in range(10)]),
        (
            {"rate_schedule": "cosine", "warmup_steps": 4},
            [*WARMUP, *(0.5 + 0.5 * math.cos(math.pi * k / 6) for k in range(6))],
        ),
        ({"rate_schedule": "linear"}, [0.1 * k for k in range(10, 0, -1)]),
        ({"rate_schedule": "linear", "warmup_steps": 4}, [*WARMUP, *(k / 6 for k in range(6, 0, -1))]),
        ({"rate_schedule": "cosine", "warmup_steps": 10}, [0.1 * k for k in range(1, 11)]),
    ],
)
def test_the_rate_warms_up_and_falls(changes, expected):
    config = TrainingConfig(num_steps=10, learning_rate=1.0, **changes)
    assert [learning_rate_at(step, config) for step in range(10)] == pytest.approx(expected)
