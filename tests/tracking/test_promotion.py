"""Which version becomes the champion."""

import math

import pytest

from tracking.promotion import Champion, headline, judged

FIGURES = {
    "extractor": "efficientnet_lite0",
    "weights_sha256": "a" * 64,
    "dataset_md5": "b" * 32,
    "reference_split": "train",
    "num_reference": "256",
    "num_samples": "128",
    "kernel_subsets": "50",
    "kernel_subset_size": "100",
    "fd_efficientnet_lite0": "80.0",
}


def figures(mean, half_width=0.01, **changes):
    kid = "kid_efficientnet_lite0"
    interval = {kid: mean, f"{kid}_low": mean - half_width, f"{kid}_high": mean + half_width}
    return FIGURES | {name: str(value) for name, value in interval.items()} | changes


def against(new, champion):
    return judged(new, Champion("7", champion))


def test_the_first_version_becomes_champion_evaluated_or_not():
    for new in (figures(0.1), {}):
        assert judged(new, None).promotes
        assert "there was no champion" in judged(new, None).reason


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
    ("name", "value", "words"),
    [
        ("extractor", "inception", "extractor is inception and was efficientnet_lite0"),
        ("weights_sha256", "c" * 64, "weights_sha256 is cccccccccccc and was aaaaaaaaaaaa"),
        ("dataset_md5", "d" * 32, "dataset_md5 is dddddddddddd and was bbbbbbbbbbbb"),
        ("reference_split", "valid", "reference_split is valid and was train"),
        ("num_reference", "255", "num_reference is 255 and was 256"),
        ("num_samples", "64", "num_samples is 64 and was 128"),
        ("kernel_subsets", "10", "kernel_subsets is 10 and was 50"),
        ("kernel_subset_size", "99", "kernel_subset_size is 99 and was 100"),
    ],
)
def test_what_was_evaluated_otherwise_is_not_compared(name, value, words):
    verdict = against(figures(0.001) | {name: value}, figures(0.1))
    assert not verdict.promotes
    assert verdict.reason == f"it was evaluated otherwise than the champion, version 7: {words}"


def test_a_figure_that_one_of_them_lacks_is_a_difference():
    old = {name: value for name, value in figures(0.1).items() if name != "dataset_md5"}
    assert "dataset_md5 is bbbbbbbbbbbb and was unknown" in against(figures(0.001), old).reason


def test_without_evaluation_nothing_is_compared():
    assert against({}, figures(0.1)).reason.startswith("it was not evaluated")
    assert "version 7, was not evaluated" in against(figures(0.1), {}).reason
    assert not against({}, figures(0.1)).promotes and not against(figures(0.1), {}).promotes


def test_the_headline_is_the_kernel_distance_of_the_extractor():
    interval = headline(figures(0.1))
    assert (interval.name, interval.mean) == ("kid_efficientnet_lite0", 0.1)
    assert interval.low == pytest.approx(0.09) and interval.high == pytest.approx(0.11)
