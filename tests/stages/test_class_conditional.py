"""The conditional quickstart, trained as its profile says, draws the number of petals that it is asked for.

A classifier that has learnt to count the petals of other flowers is the judge.
"""

import contextlib
import functools

import pytest

from bench.petals import CHANCE, draw_flowers, draw_requested, is_counted_right, train_counter
from contract.params import compose
from contract.paths import MODEL
from ddpm.published import load_model
from stages import download, preprocess, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def model(tmp_path_factory, project):
    """The model that the profile's first three stages leave."""
    params = compose("quickstart-classes", {}, project / "params.yaml")
    with contextlib.chdir(tmp_path_factory.mktemp("conditional")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_TRACKING", "off")
        patch.setattr(download, "write_pin", lambda _: None)  # nothing is kept here
        download.download(params)
        preprocess.preprocess(params)
        train.main(params)
        return load_model(MODEL)


@pytest.fixture(scope="module")
def counter():
    return train_counter(*draw_flowers(5000, 24, variety=0.2, seed=1001))


@pytest.fixture(scope="module")
def share_right(model, counter):
    """How often 250 samples at a scale of guidance have the petals asked for, the same noise at each."""

    @functools.cache
    def share(guidance_scale):
        flowers = draw_requested(model, 250, guidance_scale, num_sampling_steps=20)
        return float(is_counted_right(counter, *flowers).float().mean())

    return share


def test_the_judge_counts_the_petals_of_flowers_it_has_not_seen(counter):
    held_out = draw_flowers(1000, 24, variety=0.2, seed=1002)
    assert float(is_counted_right(counter, *held_out).float().mean()) > 0.95


# Samples of a model that ignores the class are right once in five; five standard deviations of 250 are 0.13.


@pytest.mark.parametrize(("guidance_scale", "least"), [(1.0, 0.4), (3.0, 0.6)])
def test_flowers_have_the_petals_asked_for_far_more_often_than_by_chance(share_right, guidance_scale, least):
    assert share_right(guidance_scale) > least > CHANCE + 0.13


def test_without_their_class_flowers_are_right_by_chance(share_right):
    assert abs(share_right(0.0) - CHANCE) < 0.13


def test_guidance_makes_more_of_the_class(share_right):
    assert share_right(3.0) > share_right(1.0) + 0.05
