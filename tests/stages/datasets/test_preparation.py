"""Images prepared on several cores, in order and few at a time."""

import os
import threading

import pytest

from stages.datasets.preparation import parallel_map


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


@pytest.mark.parametrize("count", [0, 1, 100])
def test_results_keep_the_order_although_later_ones_finish_first(count):
    finished = [threading.Event() for _ in range(count)]

    def square(item):
        if item % 2 == 0 and item + 1 < count:
            assert finished[item + 1].wait(60.0)
        finished[item].set()
        return item * item

    assert list(parallel_map(square, range(count))) == [item * item for item in range(count)]


def test_only_a_few_items_are_read_ahead():
    # The memory needed does not grow with the number of images.
    read = []
    items = (read.append(number) or number for number in range(1000))
    ahead = [len(read) - taken for taken, _ in enumerate(parallel_map(abs, items), start=1)]
    assert len(ahead) == 1000 and max(ahead) <= 4 * 2


def test_several_items_are_worked_on_at_once():
    meeting = threading.Barrier(2, timeout=60.0)
    assert len(list(parallel_map(lambda item: meeting.wait() or item, range(4)))) == 4


def test_an_error_is_raised_in_the_turn_of_its_item():
    results = parallel_map(lambda item: 10 // (5 - item), range(1000))
    assert [next(results) for _ in range(5)] == [2, 2, 3, 5, 10]
    with pytest.raises(ZeroDivisionError):
        next(results)
