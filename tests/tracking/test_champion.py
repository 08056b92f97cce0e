"""The champion's place: taken by a better version, also where another registration takes it meanwhile, or by hand."""

import pytest
from tracking.champion import promote_by_hand, promote_if_better

from tests.shelf import Shelf, figures


def shelve(*means):
    """A shelf with versions of these kernel distances, the first of which is the champion."""
    shelf = Shelf()
    shelf.tags = [{f"evaluate.{name}": value for name, value in figures(mean).items()} for mean in means]
    shelf.alias = "1"
    return shelf


@pytest.mark.parametrize(("mean", "champion"), [(0.05, "2"), (0.095, "1"), (0.2, "1")])
def test_a_better_version_takes_the_place(mean, champion):
    shelf = shelve(0.1, mean)
    verdict = promote_if_better(shelf, shelf.version("2"), figures(mean))
    assert shelf.alias == champion and verdict.promotes == (champion == "2")


def test_the_champion_itself_is_not_judged_and_a_free_place_is_taken():
    shelf = shelve(0.1)
    assert promote_if_better(shelf, shelf.version("1"), figures(0.1)) is None
    shelf.alias = None
    assert promote_if_better(shelf, shelf.version("1"), figures(0.1)).promotes and shelf.alias == "1"


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
