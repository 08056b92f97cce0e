"""The experiments of a sweep: spelt out, and all of them checked before any starts."""

from pathlib import Path

import pytest

from contract.params import ParamsError
from flows.trials import MAX_CHILDREN, SweepError, children_of, combinations, nested


@pytest.fixture
def spelt(monkeypatch):
    """The children of a sweep over the project's own quickstart."""
    monkeypatch.chdir(Path(__file__).parents[2])

    def of(grid=None, overrides=None, shared=None, profile="quickstart"):
        return children_of("owls", profile, shared or {}, grid or {}, overrides or [])

    return of


def test_a_grid_is_every_combination_in_order():
    grid = {"train.seed": [0, 1], "train.learning_rate": [0.1, 0.2, 0.3]}
    found = list(combinations(grid))
    assert len(found) == 6 and found[0] == {"train.seed": 0, "train.learning_rate": 0.1}
    assert [one["train.learning_rate"] for one in found] == [0.1, 0.2, 0.3] * 2


@pytest.mark.parametrize("values", [[], 3, "12", None, {"a": 1}])
def test_a_grid_without_a_list_of_values_is_refused(spelt, values):
    with pytest.raises(SweepError, match="a list of values"):
        spelt(grid={"train.seed": values})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"train.seed": 1, "train": {"unet.dropout": 0.1}}, {"train": {"seed": 1, "unet": {"dropout": 0.1}}}),
        ({"train": {"unet": {"widths": [8, 16]}}}, {"train": {"unet": {"widths": [8, 16]}}}),
        ({}, {}),
    ],
)
def test_dotted_and_nested_forms_are_one(given, expected):
    assert nested(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": 3, "train.seed": 1}, "train.seed is a part of what is set whole"),
        ({"train.seed": 1, "train": {"seed": 2}}, "train.seed is set twice"),
    ],
)
def test_contradictions_are_refused(given, message):
    with pytest.raises(ParamsError, match=message):
        nested(given)


def test_children_are_named_numbered_and_whole(spelt):
    first, second = spelt(grid={"train.learning_rate": [1e-3, 3e-3]}, shared={"train": {"num_steps": 200}})
    assert (first.name, second.name) == ("owls-1", "owls-2")
    assert second.overrides == {"train": {"num_steps": 200, "learning_rate": 3e-3}}
    assert second.varied == {"train.learning_rate": 3e-3}
    assert second.params.train.learning_rate == 3e-3 and second.params.train.num_steps == 200
    assert second.described == "owls-2 (train.learning_rate=0.003)"


def test_a_list_of_overrides_may_mix_forms_and_overrule_what_is_shared(spelt):
    children = spelt(
        overrides=[{"train.seed": 1}, {"train": {"seed": 2}, "sample.seed": 3}], shared={"train": {"seed": 9}}
    )
    assert [child.overrides for child in children] == [
        {"train": {"seed": 1}}, {"train": {"seed": 2}, "sample": {"seed": 3}},
    ]  # fmt: skip


def test_all_that_is_wrong_is_told_at_once(spelt):
    with pytest.raises(SweepError) as caught:
        spelt(grid={"train.learning_rate": [1e-3, -1.0], "train.num_steps": [100, 0]})
    first, *others = str(caught.value).splitlines()
    assert first == "3 of 4 children cannot be used:"
    assert len(others) == 3
    assert "train.learning_rate=0.001, train.num_steps=0: train.num_steps: Input should be" in others[0]
    assert "train.learning_rate: Input should be" in others[2] and "train.num_steps: Input should be" in others[2]


def test_parameters_that_do_not_fit_together_are_found(spelt):
    with pytest.raises(SweepError, match="warmup_steps=50 must not exceed num_steps=10"):
        spelt(grid={"train.num_steps": [100, 10]})


def test_an_unknown_parameter_is_named(spelt):
    with pytest.raises(SweepError, match=r"train\.learning_rat is not a parameter"):
        spelt(grid={"train.learning_rat": [1e-3, 2e-3]})


def test_an_unknown_profile_is_told_once(spelt):
    with pytest.raises(SweepError) as caught:
        spelt(grid={"train.seed": [0, 1]}, profile="tulips")
    assert str(caught.value).startswith("unknown profile 'tulips'; choose one of: ")


def test_what_all_share_must_be_right_by_itself(spelt):
    with pytest.raises(SweepError, match=r"train\.num_steps: Input should be"):
        spelt(grid={"train.seed": [0, 1]}, shared={"train": {"num_steps": 0}})


@pytest.mark.parametrize(
    ("grid", "overrides", "got"),
    [({}, [], "neither"), ({"train.seed": [1]}, [{"train.seed": 2}], "both")],
)
def test_a_sweep_varies_by_a_grid_or_by_a_list(spelt, grid, overrides, got):
    with pytest.raises(SweepError, match=f"a grid or a list of overrides, got {got}"):
        spelt(grid=grid, overrides=overrides)


def test_a_slip_of_the_hand_starts_no_thousands(spelt):
    with pytest.raises(SweepError, match=f"at most {MAX_CHILDREN} children"):
        spelt(grid={"train.seed": list(range(100)), "sample.seed": list(range(100))})


def test_the_same_experiment_twice_is_refused(spelt):
    with pytest.raises(SweepError, match=r"train\.seed=1: the same experiment as train\.seed=1"):
        spelt(overrides=[{"train.seed": 1}, {"train.seed": 2}, {"train": {"seed": 1}}])
