"""The form of a sweep, and what is refused before it starts; tests/seams/test_sweep.py runs sweeps."""

from contextlib import nullcontext

import pytest
from prefect.utilities.callables import parameter_schema

from contract.errors import FlowersError
from flows import sweep as module
from flows.sweep import run_by_hand, sweep


def test_the_form_explains_and_bounds_every_parameter():
    schema = parameter_schema(sweep)
    assert {name for name, field in schema.properties.items() if field.get("description")} == {
        "profile", "grid", "overrides", "params", "name", "max_concurrent",
    }  # fmt: skip
    assert schema.properties["max_concurrent"]["minimum"] == 1 and schema.properties["max_concurrent"]["maximum"] == 64
    assert any(kind.get("pattern") for kind in schema.properties["name"]["anyOf"])
    assert any("quickstart" in kind.get("enum", []) for kind in schema.properties["profile"]["anyOf"])
    assert schema.required == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a grid or a list of overrides, got neither"),
        ({"grid": ["train.seed=3"]}, "a list of values"),
        ({"grid": ["train.seed=[1,-1]"]}, "1 of 2 trials cannot be used"),
        ({"grid": ["train.seed"]}, "NAME=VALUE"),
        ({"overrides": "{train.seed: 1}"}, "--overrides takes a list of mappings"),
        ({"overrides": "[1"}, "--overrides is not YAML"),
        ({"grid": ["train.seed=[1]"], "assignments": ["train.seed"]}, "NAME=VALUE"),
        ({"grid": ["train.seed=[1]"], "profile": "tulips"}, "unknown profile 'tulips'"),
        ({"grid": ["train.seed=[1]"], "name": "Two Owls"}, "'Two Owls'"),
    ],
)
def test_by_hand_what_is_wrong_is_refused_before_anything_starts(given, message, monkeypatch):
    monkeypatch.setattr(module, "run_to_completion", lambda *_: pytest.fail("nothing is to be started"))
    monkeypatch.setattr(module, "enter_last_commit", nullcontext)
    left_out = {"profile": None, "grid": [], "overrides": None, "assignments": [], "name": None, "max_concurrent": 2}
    with pytest.raises(FlowersError, match=message):
        run_by_hand(**left_out | given)
