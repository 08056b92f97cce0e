"""The conditional quickstart, trained as its profile says, draws the number of petals that it is asked for.

A classifier that has learnt to count the petals of other flowers is the judge.
"""

import contextlib

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
        patch.setattr(download, "write_pin", lambda *_: None)  # nothing is kept here
        download.download(params)
        preprocess.preprocess(params)
        train.main(params)
        return load_model(MODEL)


@pytest.fixture(scope="module")
def counter():
    return train_counter(*draw_flowers(5000, 24, variety=0.2, seed=1001))


def test_the_judge_counts_the_petals_of_flowers_it_has_not_seen(counter):
    held_out = draw_flowers(1000, 24, variety=0.2, seed=1002)
    assert float(is_counted_right(counter, *held_out).float().mean()) > 0.95


def test_flowers_have_the_petals_asked_for(model, counter):
    share_right = {}
    for guidance_scale in (0.0, 1.0, 3.0):
        flowers = draw_requested(model, 250, guidance_scale, num_sampling_steps=20)
        share_right[guidance_scale] = float(is_counted_right(counter, *flowers).float().mean())
    # Samples of a model that ignores the class are right once in five; five standard deviations of 250 are 0.13.
    assert abs(share_right[0.0] - CHANCE) < 0.13
    assert share_right[1.0] > 0.4 > CHANCE + 0.13
    assert share_right[3.0] > max(0.6, share_right[1.0] + 0.05)
