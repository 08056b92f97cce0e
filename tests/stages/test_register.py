"""Registering: what a version is traced by, what is said of it, and that the same is not registered twice."""

import json
import os

import pytest

from contract.paths import METRICS, MODEL
from stages import register as module
from stages.register import register
from tests.shelf import Shelf, figures
from tracking.registry import CONTENTS_TAG


@pytest.fixture
def shelf(model):
    return Shelf()


@pytest.fixture
def registered(shelf, make_params, capsys):
    """Registers build/model with these figures, and returns the lines that are said."""

    def run(metrics, changes=None):
        METRICS.write_text(json.dumps(metrics | {"mlflow_run_id": "the evaluated"}))
        register(make_params(changes), "the run", shelf)
        return capsys.readouterr().out.splitlines()

    return run


def test_the_outcome_is_said_and_noted_with_its_reason(shelf, registered):
    assert registered(figures(0.1)) == [
        "register: tulips version 1, run the run",
        "register: version 1 becomes champion: there was no champion",
    ]
    assert shelf.runs == ["the run"] and shelf.metadata == {"profile": "quickstart", "image_size": 16}
    assert shelf.descriptions["1"] == "Profile quickstart. Became champion: there was no champion."
    lines = registered(figures(0.095))
    assert "version 2 does not become champion: the intervals overlap" in lines[1]
    assert "`flowers promote 2` makes it champion all the same" in lines[2] and shelf.alias == "1"
    assert shelf.tags[1]["promotion"].startswith("Did not become champion: the intervals overlap")
    assert "version 3 becomes champion: its whole interval lies below" in registered(figures(0.05))[1]
    assert shelf.alias == "3"


def test_without_evaluation_only_the_first_version_becomes_champion(shelf, registered):
    assert "becomes champion" in registered({"evaluated": False})[1]
    assert "was not evaluated" in registered(figures(0.1))[1]
    assert shelf.alias == "1" and not any(name.startswith("evaluate.") for name in shelf.tags[0])


def test_the_same_again_is_not_registered_twice(shelf, registered):
    # There, elsewhere, and back again, as `dvc repro` does where parameters change back.
    registered(figures(0.1))
    registered(figures(0.05))
    lines = registered(figures(0.1))
    assert lines[0] == "register: this model is tulips version 1 already"
    assert "version 1 does not become champion: it is no lower" in lines[1]
    assert registered(figures(0.05)) == [
        "register: this model is tulips version 2 already",
        "register: version 2 is the champion",
    ]
    assert len(shelf.tags) == 2 and shelf.alias == "2"
    assert shelf.tags[1]["promotion"].startswith("Became champion")  # and stays so


def test_a_version_is_traced_by_code_data_model_and_figures(shelf, registered, monkeypatch):
    monkeypatch.setattr(module, "read_lineage", lambda: {"git_commit": "c0ffee", "dvc_data": "d.dir"})
    monkeypatch.setattr(module, "read_model_digest", lambda: "m.dir")
    registered({"kid_inception": 0.1 + 0.2, "num_samples": 8})
    del shelf.tags[0][CONTENTS_TAG], shelf.tags[0]["promotion"]
    assert shelf.tags[0] == {
        "git_commit": "c0ffee",
        "dvc_data": "d.dir",
        "dvc_model": "m.dir",
        "profile": "quickstart",
        "weights": "averaged",
        "evaluate.kid_inception": "0.30000000000000004",
        "evaluate.num_samples": "8",
    }


def test_other_weights_settings_or_figures_are_another_version(model, shelf, registered):
    for changes in ({}, {"sample.weights": "raw"}):
        for known in ({}, {"kid": 1}):
            registered(known, changes)
    (MODEL / "config.json").write_text((MODEL / "config.json").read_text() + " ")
    registered({})
    assert len(shelf.tags) == 5


def test_the_run_of_the_evaluation_is_continued_without_a_gpu(model, make_params, notes, recording_run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    METRICS.write_text('{"mlflow_run_id": "the evaluated"}')
    registered = []
    monkeypatch.setattr(module, "Registry", lambda name: name)
    monkeypatch.setattr(module, "register", lambda _, *arguments: registered.append(arguments))
    module.main(make_params({"register.model_name": "tulips"}))
    assert recording_run == [("register", "the evaluated")] and notes.ended == ["FINISHED"]
    assert registered == [("the run", "tulips")]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_switched_off_it_says_so_and_needs_no_model(folder, make_params, recording_run, capsys):
    module.main(make_params({"register.enabled": False}))
    assert "switched off by register.enabled" in capsys.readouterr().out and recording_run == []


def test_without_tracking_it_says_that_nothing_is_registered(model, make_params, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    METRICS.write_text('{"mlflow_run_id": ""}')
    module.main(make_params())
    assert "nothing is registered, since tracking is off" in capsys.readouterr().out
