"""What makes a training another experiment, whose checkpoints are not to be confused with this one's."""

import pytest

import stages.train as module
from contract.nesting import flatten
from ddpm.checkpoint import fingerprint_of
from ddpm.config import TrainingConfig

CONSTANT = {"train.rate_schedule": "constant"}

# What a training learns from, and another value of it: a new parameter must be put here or among the watching ones.
LEARNING = {
    "splits": ["valid"], "unet.widths": [16, 16], "unet.attention": [True, False], "unet.num_res_blocks": 2,
    "unet.time_embedding_dim": 10, "unet.norm_groups": 2, "unet.dropout": 0.2, "diffusion.schedule": "linear",
    "diffusion.num_timesteps": 21, "diffusion.beta_start": 0.002, "diffusion.beta_end": 0.03,
    "diffusion.prediction": "v", "num_steps": 7, "batch_size": 5, "seed": 4, "random_flips": False, "loss": "l1",
    "learning_rate": 0.003, "rate_schedule": "constant", "warmup_steps": 3, "gradient_clip": None, "ema_decay": 0.8,
    "ema_warmup": False, "precision": "bfloat16", "min_snr_gamma": 5.0, "accumulation_steps": 2,
    "gradient_checkpointing": True, "extra_ema_decays": [0.5], "compilation": "default", "deterministic": True,
    "class_conditional": True,
}  # fmt: skip
WATCHING = {
    "log_every": 3, "sample_every": 3, "num_grid_images": 3, "grid_sampling_steps": 2, "checkpoint_every": 3,
    "keep_checkpoints": 3, "keep_checkpoints_every": 3, "num_processes": 2,
    "evaluate_every": 3, "evaluate_num_images": 11, "evaluate_split": "test",
}  # fmt: skip


def fingerprint(make_params, changes=None, md5="0" * 32, labels_md5=""):
    return fingerprint_of(module.identity_of(make_params(changes).train, md5, labels_md5))


def test_every_parameter_is_either_learnt_from_or_watched_by(make_params):
    assert set(flatten(make_params().section("train"))) == {*LEARNING, *WATCHING, "label_dropout"}


@pytest.mark.parametrize("is_conditional", [False, True])
def test_label_dropout_counts_where_there_are_labels(make_params, is_conditional):
    prints = {
        fingerprint(make_params, {"train.class_conditional": is_conditional, "train.label_dropout": share})
        for share in (0.1, 0.2)
    }
    assert len(prints) == (2 if is_conditional else 1)


@pytest.mark.parametrize("name", LEARNING)
def test_what_is_learnt_from_makes_another_experiment(make_params, name):
    assert fingerprint(make_params, {f"train.{name}": LEARNING[name]}) != fingerprint(make_params)


@pytest.mark.parametrize("name", WATCHING)
def test_what_is_watched_by_leaves_it_the_same_experiment(make_params, name):
    assert fingerprint(make_params, {f"train.{name}": WATCHING[name]}) == fingerprint(make_params)


def test_other_sections_leave_it_the_same_experiment(make_params):
    assert fingerprint(make_params, {"sample.seed": 5, "evaluate.seed": 6}) == fingerprint(make_params)


def test_other_data_makes_another_experiment(make_params):
    assert fingerprint(make_params, md5="1" * 32) != fingerprint(make_params)
    assert fingerprint(make_params, labels_md5="1" * 32) != fingerprint(make_params)


def test_other_code_makes_another_experiment(make_params, monkeypatch):
    before = fingerprint(make_params)
    monkeypatch.setattr(module, "code_digest", lambda *_, **__: "another")
    assert fingerprint(make_params) != before


def test_code_that_evaluates_is_no_part_of_the_experiment(make_params, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "code_digest", lambda *_, **options: asked.append(options) or "code")
    fingerprint(make_params)
    assert asked == [{"without": {"ddpm.features", "ddpm.metrics"}}]


def test_the_number_of_steps_matters_only_where_the_rate_depends_on_it(make_params):
    constant, more = (fingerprint(make_params, CONSTANT | {"train.num_steps": n}) for n in (6, 7))
    assert constant == more
    assert fingerprint(make_params, {"train.num_steps": 7}) != fingerprint(make_params)


def test_each_parameter_reaches_the_training(make_params):
    names = set(TrainingConfig.__dataclass_fields__)
    # Two of them do not fit together: five images in two parts.
    learning = LEARNING | {"label_dropout": 0.2}
    changes = {f"train.{name}": value for name, value in learning.items() if name in names}
    wanted = make_params(changes | {"train.batch_size": 6}).train
    assert isinstance(wanted, TrainingConfig)  # and is handed to the training as it is
    assert all(getattr(wanted, name) != getattr(make_params().train, name) for name in names)
