"""Registering: a version that is told, or a word why there is none."""

import pytest

from stages import register as module
from stages.paths import METRICS
from stages.tracking import _closing


def test_the_new_version_is_told(model, make_params, notes, monkeypatch, capsys):
    METRICS.write_text('{"mlflow_run_id": "the evaluated"}')
    asked = []
    monkeypatch.setattr(module, "reopened_run", lambda *arguments: asked.append(arguments[1:]) or _closing(notes))
    module.main(make_params({"register.model_name": "tulips"}))
    assert asked == [("register", "the evaluated")] and notes.ended == ["FINISHED"]
    assert capsys.readouterr().out == "register: tulips version tulips of quickstart, run the run\n"


def test_switched_off_it_says_so_and_needs_no_model(folder, make_params, monkeypatch, capsys):
    monkeypatch.setattr(module, "reopened_run", lambda *_: pytest.fail("nothing is to be recorded"))
    module.main(make_params({"register.enabled": False}))
    assert "switched off by register.enabled" in capsys.readouterr().out


def test_without_tracking_it_says_that_nothing_is_registered(model, make_params, capsys):
    METRICS.write_text('{"mlflow_run_id": ""}')
    module.main(make_params())
    assert "nothing is registered, since tracking is off" in capsys.readouterr().out
