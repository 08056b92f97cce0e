"""Variants of a measurement take turns in processes of their own."""

import importlib
import os
import time
from functools import partial

import pytest
import torch

from bench.turns import Timings, timed_in_turn

CPU = torch.device("cpu")


def builder(function, argument):
    """Of a variant; it goes to another process, so it is made of what that process can import."""
    return partial(partial, function, argument)


@pytest.mark.slow
def test_each_variant_is_timed_once_a_round():
    timings = timed_in_turn({"short": builder(time.sleep, 0.02), "long": builder(time.sleep, 0.2)}, 2, CPU)
    assert list(timings.seconds) == ["short", "long"]
    assert len(timings.seconds["short"]) == len(timings.seconds["long"]) == 2
    assert all(seconds >= 0.2 for seconds in timings.seconds["long"])
    assert timings.peak_memory_gib["short"] > 0.0
    assert timings.left_out == {}


def test_a_variant_whose_package_is_missing_is_left_out_and_named():
    builders = {"keras": partial(importlib.import_module, "no_such_keras"), "here": builder(time.sleep, 0.0)}
    timings = timed_in_turn(builders, 1, CPU)
    assert timings.left_out == {"keras": "No module named 'no_such_keras'"}
    assert list(timings.seconds) == ["here"]


def test_a_process_that_is_ended_is_named():
    with pytest.raises(RuntimeError, match="the process of 'gone' was ended"):
        timed_in_turn({"gone": builder(os._exit, 3)}, 1, CPU)


def test_a_ratio_is_the_median_of_the_rounds():
    timings = Timings(seconds={"one": [2.0, 9.0, 8.0], "other": [1.0, 3.0, 2.0]})
    assert timings.ratio("one", "other") == 3.0
    assert timings.median("one") == 8.0
