"""The identity of a training: another experiment's checkpoints are not to be confused with this one's."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from contract.errors import StageError
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


@pytest.fixture
def pretend_import(fingerprint, tmp_path, monkeypatch):
    """Gives the digests of the code and the fingerprint with a module of that name and text."""

    def make(name, text):
        module = ModuleType(name)
        module.__file__ = str(tmp_path / f"{name}.py")
        Path(module.__file__).write_text(text)
        monkeypatch.setitem(sys.modules, name, module)
        return digest_code(), fingerprint()

    return make


def test_the_digest_of_the_code_changes_with_modules_that_are_learnt_by(fingerprint, pretend_import):
    before = digest_code(), fingerprint()
    for name in ("another.module", "ddpmlike", "ddpm.metrics", "ddpm.checks", "stages.training.previews"):
        assert pretend_import(name, "a = 1") == before
    for name in ("ddpm.invented", "stages.training.loop"):
        versions = [before, pretend_import(name, "a = 1"), pretend_import(name, "a = 2")]
        assert len({identity for _, identity in versions}) == 3
        assert {one for one, digest in versions[2][0].items() if versions[1][0][one] != digest} == {name}


CODE = '''"""Module."""
class A:
    """Class."""
    size: int = 3
    """Attribute."""

def f(x: int) -> str:
    """Function."""
    return f"{x}, {x + 1}" if x else "none"
'''


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("return", "# why\n    return", True),
        ("Function.", "What it does.", True),
        ('"""Attribute."""', "", True),
        ('"none"', "'none'", True),
        ("def f(x: int) -> str:", "def f(\n    x: int,\n) -> str:", True),
        ("size: int = 3", "size: int = 3  # three", True),
        ("= 3", "= 3.0", False),
        ('"none"', "None", False),
        ("x + 1", "x - 1", False),
        ('return f"', 'return "', False),
    ],
)
def test_comments_docstrings_and_layout_are_no_change_of_code(pretend_import, old, new, is_same):
    digests = [pretend_import("ddpm.invented", text) for text in (CODE, CODE.replace(old, new))]
    assert (digests[0] == digests[1]) is is_same


def test_code_that_is_no_python_by_now_is_one_line(pretend_import):
    with pytest.raises(StageError, match=r"invented.py has changed since it was imported, and is no Python"):
        pretend_import("ddpm.invented", "a = (")
