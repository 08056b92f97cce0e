"""A stage reads no parameter but those that dvc.yaml declares, by which DVC decides whether it has to run again."""

import json
from pathlib import Path

import pytest

from contract import paths
from contract.schema import is_section
from contract.stage_names import READ_BESIDE, STAGES
from stages import download, evaluate, preprocess, reference, register, sample, train

MAINS = {
    "download": download.download,
    "preprocess": preprocess.preprocess,
    "reference": reference.main,
    "train": train.main,
    "sample": sample.main,
    "evaluate": evaluate.main,
    "register": register.main,
}

RECORDED = ("profile", "train.num_steps")
"""Parameters that stages only record in MLflow, as `Params.section` does."""


class Declared:
    """Parameters of which only the declared ones can be read."""

    def __init__(self, values, declared, prefix=""):
        self._values, self._declared, self._prefix = values, declared, prefix

    def __getattr__(self, name):
        value, place = getattr(self._values, name), self._prefix + name
        if place in self._declared or callable(value):
            return value
        if not is_section(type(value)):
            raise AssertionError(f"{place} is read, and dvc.yaml does not declare it")
        return Declared(value, self._declared, f"{place}.")


@pytest.mark.parametrize(
    "changes", [{}, {"train.class_conditional": True, "train.evaluate_every": 3, "train.evaluate_split": "train"}]
)
@pytest.mark.usefixtures("client", "mean_colours")
def test_each_stage_reads_declared_parameters_only(make_params, project, monkeypatch, changes):
    Path("ddpm").symlink_to(project / "ddpm")  # a registered model takes a copy of it along
    monkeypatch.setattr(download, "write_pin", lambda *_: None)  # there is no repository to pin data in
    for module in (reference, train):  # it reads parameters of later stages, too, but shapes no result: it only refuses
        monkeypatch.setattr(module, "check_suitability", lambda _: None)
    params = make_params(changes)
    for stage in STAGES:
        MAINS[stage](Declared(params, (stage, *READ_BESIDE.get(stage, ()), *RECORDED)))
    # Each stage did its work, and read what it needed for it.
    assert paths.RECEIPT.is_file() and paths.DATASET.is_dir() and paths.REFERENCE.is_dir()
    assert paths.MODEL.is_dir() and paths.GRID.is_file() and json.loads(paths.METRICS.read_text())


def test_reading_another_parameter_is_found(make_params):
    with pytest.raises(AssertionError, match=r"^sample\.sampler is read"):
        Declared(make_params(), ("train.unet", "sample.seed")).sample.sampler  # noqa: B018 (reading is the point)
