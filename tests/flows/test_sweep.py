"""What is refused before a sweep by hand starts; tests/seams/test_sweep.py runs sweeps."""

from contextlib import nullcontext

import pytest

from contract.errors import FlowersError
from flows import sweep as module
from flows.sweep import run_by_hand


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": ["train.seed=[1,-1]"]}, "1 of 2 trials cannot be used"),
        ({"grid": ["train.seed"]}, "NAME=VALUE"),
        ({"overrides": "{train.seed: 1}"}, "--overrides takes a list of mappings"),
        ({"overrides": "[1"}, "--overrides is not YAML"),
        ({"grid": ["train.seed=[1]"], "assignments": ["train.seed"]}, "NAME=VALUE"),
        ({"grid": ["train.seed=[1]"], "name": "Two Owls"}, "'Two Owls'"),
    ],
)
def test_by_hand_what_is_wrong_is_refused_before_anything_starts(given, message, monkeypatch):
    monkeypatch.setattr(module, "run_to_completion", lambda *_: pytest.fail("nothing is to be started"))
    monkeypatch.setattr(module, "enter_last_commit", nullcontext)
    left_out = {"profile": None, "grid": [], "overrides": None, "assignments": [], "name": None, "max_concurrent": 2}
    with pytest.raises(FlowersError, match=message):
        run_by_hand(**left_out | given)
