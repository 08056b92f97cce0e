"""The experiments of a sweep: spelt out and checked before any starts; tests/seams/test_sweep.py runs them."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from contract.errors import FlowersError
from contract.nesting import nest
from flows import sweep
from flows.trials import MAX_TRIALS, parse_overrides_list, plan_trials


@pytest.fixture
def spelt(monkeypatch):
    """Plans the trials of a sweep over the project's own quickstart."""
    monkeypatch.chdir(Path(__file__).parents[2])

    def of(grid=None, overrides=None, shared=None, profile="quickstart"):
        return plan_trials("owls", profile, shared or {}, grid or {}, overrides or [])

    return of


def test_a_grid_is_every_combination_in_order(spelt):
    trials = spelt(grid={"train.seed": [0, 1], "train.learning_rate": [0.1, 0.2, 0.3]})
    assert len(trials) == 6 and trials[0].varied == {"train.seed": 0, "train.learning_rate": 0.1}
    assert [trial.varied["train.learning_rate"] for trial in trials] == [0.1, 0.2, 0.3] * 2


def test_dotted_and_nested_forms_are_one():
    given = {"train.seed": 1, "train": {"unet.dropout": 0.1, "unet": {"widths": [8, 16]}}}
    assert nest(given) == {"train": {"seed": 1, "unet": {"dropout": 0.1, "widths": [8, 16]}}} and nest({}) == {}


def test_trials_are_named_numbered_and_complete(spelt):
    first, second = spelt(grid={"train.learning_rate": [1e-3, 3e-3]}, shared={"train": {"num_steps": 200}})
    assert (first.name, second.name) == ("owls-1", "owls-2")
    assert second.overrides == {"train": {"num_steps": 200, "learning_rate": 3e-3}}
    assert second.params.train.learning_rate == 3e-3 and second.params.train.num_steps == 200
    assert str(second) == "owls-2 (train.learning_rate=0.003)"


def test_a_list_of_overrides_may_mix_forms_and_overrule_what_is_shared(spelt):
    trials = spelt(
        overrides=[{"train.seed": 1}, {"train": {"seed": 2}, "sample.seed": 3}], shared={"train": {"seed": 9}}
    )
    assert [trial.overrides for trial in trials] == [
        {"train": {"seed": 1}}, {"train": {"seed": 2}, "sample": {"seed": 3}},
    ]  # fmt: skip


def test_all_that_is_wrong_is_told_at_once(spelt):
    with pytest.raises(FlowersError) as caught:
        spelt(grid={"train.learning_rate": [1e-3, -1.0], "train.num_steps": [100, 0]})
    first, *others = str(caught.value).splitlines()
    assert first == "3 of 4 trials cannot be used:"
    assert len(others) == 3
    assert "train.learning_rate=0.001, train.num_steps=0: train.num_steps: Input should be" in others[0]
    assert "train.learning_rate: Input should be" in others[2] and "train.num_steps: Input should be" in others[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": {"train.num_steps": [100, 10]}}, "warmup_steps=50 must not exceed num_steps=10"),
        ({"grid": {"train.learning_rat": [1e-3, 2e-3]}}, r"train\.learning_rat is not a parameter"),
        ({"grid": {"train.seed": [0, 1]}, "profile": "tulips"}, "^unknown profile 'tulips'; choose one of: "),
        ({"grid": {"train.seed": [0, 1]}, "shared": {"train": {"num_steps": 0}}}, r"train\.num_steps: Input should be"),
        *(({"grid": {"train.seed": values}}, "a list of values") for values in ([], 3, "12", None, {"a": 1})),
        ({}, "a grid or a list of overrides, got neither"),
        ({"grid": {"train.seed": [1]}, "overrides": [{"train.seed": 2}]}, "a grid or a list of overrides, got both"),
        ({"grid": {name: list(range(100)) for name in ("train.seed", "sample.seed")}}, f"at most {MAX_TRIALS} trials"),
        ({"overrides": [{"train.seed": 1}, {"train": {"seed": 1}}]}, "the same experiment as train.seed=1"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused(spelt, given, message):
    with pytest.raises(FlowersError, match=message):
        spelt(**given)


def test_a_list_of_overrides_is_read_from_a_command_line():
    assert parse_overrides_list("[{train.seed: 1}, {}]") == [{"train.seed": 1}, {}] and parse_overrides_list(None) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": ["train.seed=[1,-1]"]}, "1 of 2 trials cannot be used"),
        ({"grid": ["train.seed"]}, "NAME=VALUE"),
        ({"overrides": "{train.seed: 1}"}, "--overrides takes a list of mappings"),
        ({"overrides": "[1"}, r"--overrides: '\[1' is not YAML: line 1, column 3: "),
        ({"overrides": "[{download.source: ! x}]"}, r"--overrides: .* holds a tag \(!\), .*quotes"),
        ({"grid": ["train.seed=[1]"], "assignments": ["train.seed"]}, "NAME=VALUE"),
        ({"grid": ["train.seed=[1]"], "name": "Two Owls"}, "'Two Owls'"),
    ],
)
def test_by_hand_what_is_wrong_is_refused_before_anything_starts(given, message, monkeypatch):
    monkeypatch.setattr(sweep, "run_to_completion", lambda *_: pytest.fail("nothing is to be started"))
    monkeypatch.setattr(sweep, "enter_last_commit", nullcontext)
    left_out = {"profile": None, "grid": [], "overrides": None, "assignments": [], "name": None, "max_concurrent": 2}
    with pytest.raises(FlowersError, match=message):
        sweep.run_by_hand(**left_out | given)
