"""The identity of a training: another experiment's checkpoints are not to be confused with this one's."""

import sys
from types import ModuleType

import pytest

from contract.nesting import flatten
from ddpm.checkpoint import fingerprint_of
from stages.training.identity import digest_code, identify

# Parameters that shape what is learnt, each with another value; a new parameter goes here or among the watching ones.
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


@pytest.fixture
def fingerprint(make_params):
    """The fingerprint of the small experiment with changes."""

    def make(changes=None, images_md5="0" * 32, labels_md5=""):
        params = make_params({f"train.{name}": value for name, value in (changes or {}).items()}).train
        return fingerprint_of(identify(params, images_md5, labels_md5))

    return make


def test_every_parameter_is_either_learnt_from_or_watched_by(make_params):
    assert set(flatten(make_params().section("train"))) == {*LEARNING, *WATCHING, "label_dropout"}


@pytest.mark.parametrize("is_conditional", [False, True])
def test_label_dropout_counts_only_with_labels(fingerprint, is_conditional):
    one, other = (fingerprint({"class_conditional": is_conditional, "label_dropout": share}) for share in (0.1, 0.2))
    assert (one != other) is is_conditional


def test_parameters_that_are_learnt_from_make_another_experiment(fingerprint):
    prints = {fingerprint({name: value}) for name, value in LEARNING.items()}
    assert len(prints | {fingerprint()}) == len(LEARNING) + 1


def test_watching_leaves_it_the_same_experiment(fingerprint):
    assert {fingerprint({name: value}) for name, value in WATCHING.items()} == {fingerprint()}


def test_other_data_makes_another_experiment(fingerprint):
    assert len({fingerprint(), fingerprint(images_md5="1" * 32), fingerprint(labels_md5="1" * 32)}) == 3


def test_the_number_of_steps_counts_only_if_the_rate_depends_on_it(fingerprint):
    assert fingerprint({"rate_schedule": "constant"}) == fingerprint({"rate_schedule": "constant", "num_steps": 7})


def test_the_digest_of_the_code_changes_with_modules_that_are_learnt_by(fingerprint, tmp_path, monkeypatch):
    def pretend_import(name, line):
        module = ModuleType(name)
        module.__file__ = str(tmp_path / "module.py")
        (tmp_path / "module.py").write_text(line)
        monkeypatch.setitem(sys.modules, name, module)
        return digest_code(), fingerprint()

    before = digest_code(), fingerprint()
    for name in ("another.module", "ddpmlike", "ddpm.metrics", "stages.training.previews"):
        assert pretend_import(name, "a = 1") == before
    for name in ("ddpm.invented", "stages.training.loop"):
        versions = {before, pretend_import(name, "a = 1"), pretend_import(name, "a = 2")}
        assert len(versions) == len({identity for _, identity in versions}) == 3
