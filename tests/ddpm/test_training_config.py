"""The rate of each step, and which configurations are refused."""

import dataclasses
import math

import pytest

from ddpm import TrainingConfig
from ddpm.training_state import learning_rate_at
from tests.ddpm.small_training import CONFIG


def rates(**changes):
    config = TrainingConfig(num_steps=10, learning_rate=2.0, **changes)
    return [learning_rate_at(step, config) for step in range(10)]


def test_a_constant_rate():
    assert rates() == [2.0] * 10


def test_a_constant_rate_behind_a_warm_up():
    assert rates(warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, *[2.0] * 6]


def test_a_cosine_rate():
    # Loshchilov & Hutter 2017, Eq. 5: half way down at half time.
    assert rates(rate_schedule="cosine") == pytest.approx([1.0 + math.cos(math.pi * k / 10) for k in range(10)])
    assert rates(rate_schedule="cosine")[5] == pytest.approx(1.0)


def test_a_cosine_rate_behind_a_warm_up():
    falling = [1.0 + math.cos(math.pi * k / 6) for k in range(6)]
    assert rates(rate_schedule="cosine", warmup_steps=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, *falling])


def test_a_linear_rate():
    assert rates(rate_schedule="linear") == pytest.approx([0.2 * k for k in range(10, 0, -1)])


def test_a_linear_rate_behind_a_warm_up():
    falling = [2.0 * (6 - k) / 6 for k in range(6)]
    assert rates(rate_schedule="linear", warmup_steps=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, *falling])


def test_a_warm_up_may_last_the_whole_run():
    assert rates(rate_schedule="cosine", warmup_steps=10) == pytest.approx([0.2 * k for k in range(1, 11)])


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0, got nan"),
        ({"warmup_steps": -1}, "warmup_steps must lie in 0 … num_steps=10, got -1"),
        ({"warmup_steps": 11}, "warmup_steps must lie in 0 … num_steps=10, got 11"),
        ({"rate_schedule": "step"}, "unknown rate schedule 'step'; choose one of constant, cosine, linear"),
        ({"loss": "l2"}, "unknown loss 'l2'; choose one of mse, l1, huber"),
        ({"precision": "float16"}, "unknown precision 'float16'; choose one of auto, float32, tensorfloat32, bfloat16"),
        ({"compilation": "on"}, "unknown compilation 'on'; choose one of auto, off, default, reduce-overhead"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma must be above 0 or None, got 0.0"),
        ({"min_snr_gamma": math.nan}, "min_snr_gamma must be above 0 or None, got nan"),
        ({"accumulation_steps": 0}, "accumulation_steps must be at least 1, got 0"),
        ({"gradient_clip": 0.0}, "gradient_clip must be above 0 or None, got 0.0"),
        ({"gradient_clip": -1.0}, "gradient_clip must be above 0 or None, got -1.0"),
    ],
)
def test_a_value_outside_its_range_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{"num_steps": 10, **changes})


def test_a_decay_outside_its_range_is_an_error(start):
    with pytest.raises(ValueError, match="decay must lie in"):
        start(dataclasses.replace(CONFIG, ema_decay=1.0))
    with pytest.raises(ValueError, match="decay must lie in"):
        start(dataclasses.replace(CONFIG, extra_ema_decays=(0.5, 1.0)))


@pytest.mark.parametrize("decays", [(0.999,), (0.9, 0.9)])
def test_two_averages_of_the_same_decay_are_an_error(decays):
    with pytest.raises(ValueError, match="extra_ema_decays must differ from each other and from ema_decay"):
        TrainingConfig(ema_decay=0.999, extra_ema_decays=decays)


@pytest.mark.parametrize("compilation", ["reduce-overhead", "max-autotune"])
def test_cuda_graphs_with_accumulation_are_an_error(compilation):
    with pytest.raises(ValueError, match="records CUDA graphs"):
        TrainingConfig(compilation=compilation, accumulation_steps=2)
    assert TrainingConfig(compilation=compilation).compilation == compilation
