"""Which version becomes the champion: by its figures, also where another registration interferes, or by hand."""

import math

import pytest

from tests.shelf import Shelf, figures
from tracking.promotion import judge_version, promote_by_hand, promote_if_better
from tracking.registry import Version


def against(new, champion):
    return judge_version(new, Version("7", {f"evaluate.{name}": value for name, value in champion.items()}))


@pytest.mark.parametrize(
    ("mean", "promotes", "words"),
    [
        (0.0799, True, "its whole interval lies below"),
        (0.0801, False, "the intervals overlap"),  # though its mean lies below the champion's interval
        (0.0950, False, "the intervals overlap"),
        (0.1000, False, "it is no lower"),
        (0.1300, False, "it is no lower"),
        (math.nan, False, "it is no lower"),
    ],
)
def test_the_champion_gives_way_to_an_interval_wholly_below_its_own(mean, promotes, words):
    verdict = against(figures(mean), figures(0.1))
    assert verdict.promotes == promotes
    assert words in verdict.reason
    assert f"kid_efficientnet_lite0 {mean:.4f} (95 %: " in verdict.reason
    assert "version 7, kid_efficientnet_lite0 0.1000 (95 %: 0.0900 … 0.1100)" in verdict.reason


def test_a_figure_that_is_lower_below_zero_is_lower():
    # An unbiased estimate of a distance near zero may be negative.
    assert against(figures(-0.02), figures(0.005)).promotes


@pytest.mark.parametrize(
    "name",
    ["extractor", "weights_sha256", "dataset_md5", "reference_split", "num_reference", "num_samples", "kernel_subsets",
     "kernel_subset_size"],
)  # fmt: skip
def test_what_was_evaluated_in_another_way_is_not_compared(name):
    verdict = against(figures(0.001) | {name: "c" * 64}, figures(0.1))
    assert not verdict.promotes and f"{name} is cccccccccccc and was {figures(0.1)[name][:12]}" in verdict.reason


def test_a_figure_that_one_of_them_lacks_is_a_difference():
    old = {name: value for name, value in figures(0.1).items() if name != "dataset_md5"}
    assert "dataset_md5 is bbbbbbbbbbbb and was unknown" in against(figures(0.001), old).reason


def test_without_evaluation_nothing_is_compared():
    assert against({}, figures(0.1)).reason.startswith("it was not evaluated")
    assert "version 7, was not evaluated" in against(figures(0.1), {}).reason
    assert not against({}, figures(0.1)).promotes and not against(figures(0.1), {}).promotes


def shelve(*means):
    """A shelf with versions of these kernel distances, the first of which is the champion."""
    shelf = Shelf()
    shelf.tags = [{f"evaluate.{name}": value for name, value in figures(mean).items()} for mean in means]
    shelf.alias = "1"
    return shelf


def test_the_champion_itself_is_not_judged_and_a_free_place_is_taken():
    shelf = shelve(0.1)
    assert promote_if_better(shelf, shelf.version("1"), figures(0.1)) is None
    for new in (figures(0.1), {}):
        shelf.alias = None
        assert promote_if_better(shelf, shelf.version("1"), new).reason == "there was no champion"
        assert shelf.alias == "1"


@pytest.mark.parametrize("call", [1, 3], ids=["after it was read", "after it was promoted"])
@pytest.mark.parametrize(("theirs", "champion"), [(0.01, "2"), (0.07, "3")])
def test_a_champion_that_another_registration_makes_meanwhile_is_judged(monkeypatch, call, theirs, champion):
    shelf = shelve(0.1, theirs, 0.04)
    calls = iter(range(1, 100))

    def interrupt(method):
        def take_turn(*arguments):
            result = method(*arguments)
            if next(calls) == call:
                shelf.alias = "2"
            return result

        return take_turn

    for name in ("champion", "promote"):
        monkeypatch.setattr(shelf, name, interrupt(getattr(shelf, name)))
    verdict = promote_if_better(shelf, shelf.version("3"), figures(0.04))
    assert shelf.alias == champion and verdict.promotes == (champion == "3")
    assert "the champion's, version 2" in verdict.reason


def test_promotion_by_hand_takes_any_version_and_notes_it():
    shelf = shelve(0.1, 0.2)
    assert promote_by_hand(shelf, "2") == "tulips version 2 is the champion, after 1"
    assert shelf.alias == "2" and shelf.tags[1]["promotion"] == "Became champion by hand, after version 1"
