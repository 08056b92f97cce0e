"""Settings: bounds, choices and combinations, checked when they are made."""

import dataclasses
import math

import pytest

from ddpm.config import DiffusionConfig, SamplingConfig, TrainingConfig, UNetConfig


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (TrainingConfig, {"num_steps": 0}, "num_steps must be at least 1 .*got 0"),
        (TrainingConfig, {"learning_rate": 0.0}, "learning_rate must be above 0.*got 0.0"),
        (TrainingConfig, {"learning_rate": math.nan}, "learning_rate must be above 0.*got nan"),
        (TrainingConfig, {"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        (TrainingConfig, {"num_steps": 10, "warmup_steps": 11}, "warmup_steps=11 must not exceed num_steps=10"),
        (TrainingConfig, {"rate_schedule": "step"}, "rate_schedule must be one of constant, .*got 'step'"),
        (TrainingConfig, {"loss": "l2"}, "loss must be one of mse, l1, huber, got 'l2'"),
        (TrainingConfig, {"precision": "float16"}, "precision must be one of auto, .*got 'float16'"),
        (TrainingConfig, {"compilation": "on"}, "compilation must be one of auto, off, .*got 'on'"),
        (TrainingConfig, {"min_snr_gamma": math.nan}, "min_snr_gamma must be above 0.*, or None, got nan"),
        (TrainingConfig, {"accumulation_steps": 0}, "accumulation_steps must be at least 1, got 0"),
        (TrainingConfig, {"gradient_clip": -1.0}, "gradient_clip must be above 0.*, or None, got -1.0"),
        (TrainingConfig, {"ema_decay": 1.0}, "ema_decay must be at least 0.0 and below 1.0, got 1.0"),
        (TrainingConfig, {"extra_ema_decays": (0.5, 1.0)}, "each item at least 0.0 and below 1.0, got .0.5, 1.0"),
        (TrainingConfig, {"extra_ema_decays": (0.999,)}, "extra_ema_decays must differ"),
        (TrainingConfig, {"extra_ema_decays": (0.9, 0.9)}, "extra_ema_decays must differ"),
        (TrainingConfig, {"compilation": "max-autotune", "accumulation_steps": 2}, "needs accumulation_steps=1, got 2"),
        (UNetConfig, {"widths": ()}, "widths must be of length at least 1"),
        (UNetConfig, {"widths": (8, 0)}, "widths must be a list, each item at least 1"),
        (UNetConfig, {"attention": (True,)}, "attention needs one entry for each of the 4 widths, got 1"),
        (UNetConfig, {"norm_groups": 3}, "norm_groups=3 must divide every width, got width 64"),
        (UNetConfig, {"num_res_blocks": 0}, "num_res_blocks must be at least 1"),
        (UNetConfig, {"time_embedding_dim": 7}, "time_embedding_dim must be .*a multiple of 2, got 7"),
        (UNetConfig, {"dropout": 1.0}, "dropout must be at least 0.0 and below 1.0"),
        (UNetConfig, {"dropout": -0.1}, "dropout must be at least 0.0 and below 1.0"),
        (UNetConfig, {"num_classes": 0}, "num_classes must be at least 1, or None, got 0"),
        (DiffusionConfig, {"schedule": "square"}, "schedule must be one of linear, cosine, got 'square'"),
        (DiffusionConfig, {"beta_start": 0.5}, "beta_start=0.5 must not exceed beta_end=0.02"),
        (SamplingConfig, {"sampler": "no_such"}, "sampler must be one of ddpm, ddim, "),
        (SamplingConfig, {"classes": ()}, "classes must be of length at least 1, or None"),
        (SamplingConfig, {"eta": 1.5}, "eta must be at least 0.0 and at most 1.0, got 1.5"),
    ],
)
def test_a_value_that_cannot_be_used_is_an_error(config, changes, words):
    with pytest.raises(ValueError, match=words):
        config(**changes)
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(config(), **changes)
