"""What a later stage would refuse is refused before the long work, by the programs that DVC starts."""

import runpy

import pytest

from contract.errors import StageError
from stages.datasets.suitability import check_suitability
from tests.small_experiment import CONDITIONAL

SPLITS = ("train",) * 8 + ("valid",) * 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"^evaluate\.reference_split: split train holds 8 images, and a distance needs 10; images by split: "
         r"\{'train': 8, 'valid': 12\}; name another split, prepare more images, or set evaluate\.enabled to false$"),
        ({"evaluate.reference_split": "test"}, "split test holds 0 images"),
        ({"evaluate.enabled": False, "train.evaluate_every": 6, "train.evaluate_split": "train"},
         r"^train\.evaluate_split: split train holds 8 images, .* or set train\.evaluate_every to null$"),
        ({"train.splits": ["test"]}, "no image in split test"),
        (CONDITIONAL | {"sample.classes": ["nan", "ross"]},
         r"^sample\.classes, of the classes of train\.splits \(train\): unknown class 'ross'; did you mean rose \(8\)"),
        (CONDITIONAL | {"sample.classes": [2]}, "unknown class 2; the model knows 01, nan"),
    ],
)  # fmt: skip
def test_what_a_later_stage_could_not_follow_is_refused(folder, dataset, make_params, changes, message):
    dataset(splits=SPLITS)
    with pytest.raises(StageError, match=message):
        check_suitability(make_params(changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluate.reference_split": "valid", "train.evaluate_every": 6, "train.evaluate_split": "valid"},
        {"evaluate.enabled": False},
        CONDITIONAL | {"evaluate.enabled": False, "sample.classes": ["NaN", 1, 8]},
    ],
)
def test_what_all_stages_can_follow_is_not(folder, dataset, make_params, changes):
    dataset(splits=SPLITS)
    check_suitability(make_params(changes))


@pytest.mark.parametrize("stage", ["reference", "train"])
@pytest.mark.usefixtures("signal_handlers")
def test_a_stage_before_or_of_the_training_refuses_it(folder, project, dataset, write_params, capfd, stage):
    dataset(splits=SPLITS)
    write_params()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(project / "stages" / f"{stage}.py"), run_name="__main__")
    assert ended.value.code == 1
    [line] = capfd.readouterr().err.splitlines()
    assert "split train holds 8 images" in line
    assert not (folder / "build" / stage).exists() and not (folder / "build" / "checkpoints").exists()
