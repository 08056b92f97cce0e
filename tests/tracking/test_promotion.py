"""Which version becomes the champion."""

import math

import pytest

from tests.shelf import figures
from tracking.promotion import Champion, judge_version, read_figures, read_interval


def against(new, champion):
    return judge_version(new, Champion("7", champion))


def test_the_first_version_becomes_champion_evaluated_or_not():
    for new in (figures(0.1), {}):
        assert judge_version(new, None).promotes
        assert "there was no champion" in judge_version(new, None).reason


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


def test_the_interval_and_the_figures_are_read_from_a_versions_tags():
    tags = {f"evaluate.{name}": value for name, value in figures(0.1).items()} | {"weights": "raw"}
    assert read_figures(tags) == figures(0.1)
    interval = read_interval(figures(0.1))
    assert (interval.name, interval.mean) == ("kid_efficientnet_lite0", 0.1)
    assert interval.low == pytest.approx(0.09) and interval.high == pytest.approx(0.11)
