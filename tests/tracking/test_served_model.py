"""The registered model draws on request and refuses bad requests; test_registry.py registers it."""

import base64
import io
import json
import shutil
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm import ImageNoise, guided, sample
from ddpm.config import SamplerName
from ddpm.devices import arithmetic
from ddpm.images import to_pixels
from ddpm.published import load_model


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Loads a published model as MLflow does."""

    def load(published, **limits):
        from tracking.served_model import FlowerSampler

        for name in ("config.json", "averaged.safetensors"):
            shutil.copyfile(published / name, tmp_path / name)
        sampler = FlowerSampler()
        sampler.load_context(SimpleNamespace(artifacts={"model": str(tmp_path)}))
        for name, limit in limits.items():
            monkeypatch.setattr(f"tracking.served_model.{name.upper()}", limit)
        return sampler

    return load


def images(row):
    return np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(word)))) for word in row["png_base64"]])


def by_hand(published, labels, seed=0, guidance=1.0, steps=3, sampler="ddim", eta=0.0):
    model = load_model(published)
    predict = model.unet if labels is None else guided(model.unet, torch.tensor(labels), guidance)
    noise = ImageNoise(seed, range(2), (3, 16, 16))
    with arithmetic("auto", torch.device("cpu")):
        drawn = sample(sampler, predict, model.diffusion, noise, steps, eta)
    return to_pixels(drawn).permute(0, 2, 3, 1).numpy()


def refusal(model, *rows):
    from tracking.served_model import RefusedRequest

    with pytest.raises(RefusedRequest) as refused:
        model.predict(list(rows))
    assert refused.value.get_http_status_code() == 400
    answer = json.loads(refused.value.serialize_as_json())
    assert answer == {"error_code": "INVALID_PARAMETER_VALUE", "message": refused.value.reason}
    assert "\n" not in refused.value.reason and len(refused.value.reason) < 300
    return refused.value.reason


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_model_that_knows_classes_draws_those_asked_for(loaded, published_conditional, guidance):
    # By name, by number, by number as text, by a name that is a number, and left out: then all in turn.
    classes = {"rose": [2, 2], 5: [1, 1], "8": [2, 2], 1: [0, 0], None: [0, 1]}
    model = loaded(published_conditional)
    rows = [{"n": 2, "steps": 3, "class": name, "guidance": guidance} for name in classes]
    for answer, labels in zip(model.predict(rows), classes.values(), strict=True):
        np.testing.assert_array_equal(images(answer), by_hand(published_conditional, labels, 0, guidance))


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 1), ("ddim", 0), ("dpm_solver++", 0)])
def test_a_row_draws_by_its_own_sampler_steps_and_seed(loaded, published, sampler, eta):
    # As in the section `sample`, eta may stay as it is when the sampler changes to one with noise of its own.
    row = {"n": 2, "sampler": sampler, "eta": eta}
    first, second = loaded(published).predict([row | {"seed": 0, "steps": 3}, row | {"seed": 2**40, "steps": 5}])
    np.testing.assert_array_equal(images(first), by_hand(published, None, 0, steps=3, sampler=sampler))
    np.testing.assert_array_equal(images(second), by_hand(published, None, 2**40, steps=5, sampler=sampler))


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver++"])
def test_a_row_may_ask_for_noise_in_each_step(loaded, published, sampler):
    etas = (0, 0.5, 1)
    answers = loaded(published).predict([{"n": 2, "steps": 4, "sampler": sampler, "eta": eta} for eta in etas])
    for eta, answer in zip(etas, answers, strict=True):
        expected = by_hand(published, None, steps=4, sampler=sampler, eta=float(eta))
        np.testing.assert_array_equal(images(answer), expected)
    assert len({answer["png_base64"][0] for answer in answers}) == 3


@pytest.mark.parametrize("left_out", [{}, dict.fromkeys(["seed", "sampler", "steps", "eta", "class", "guidance"])])
def test_all_but_n_may_be_left_out_or_null(loaded, published, left_out):
    # The model has 20 time steps, fewer than the usual 50.
    (answer,) = loaded(published).predict([{"n": 2} | left_out])
    np.testing.assert_array_equal(images(answer), by_hand(published, None, 0, steps=20))


@pytest.mark.parametrize(
    ("field", "allowed", "values"),
    [
        ("n", "a whole number in 1 … 64", [0, 65, True, 2.0, "2", float("nan"), [2]]),
        ("seed", "a whole number in 0 … 9223372036854775807", [-1, 0.5]),
        ("steps", "a whole number in 1 … 20", [0, 21]),
        ("sampler", f"one of {', '.join(get_args(SamplerName))}", ["no_such", {}]),
        ("eta", "a number in 0 … 1", [-0.1, 1.1, float("nan"), True, "1"]),
        ("guidance", "a number in 0 … 100", [float("nan"), 10**400, "2"]),
        ("class", "a name or a number of a class", [["rose"], False, "\n" * 500]),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_line(loaded, published, field, allowed, values):
    model = loaded(published)
    for value in values:
        reason = refusal(model, {"n": 1} | {field: value})
        assert reason.startswith(f"{field} must be {allowed}, got {repr(value)[:8]}")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], 'inputs holds no row; give at least one, such as {"n": 4}'),
        ([{}], "n is missing"),
        ([{"n": None}], "n is missing"),
        ([{"n": 1}, {"n": 0}], "row 2: n must be"),
        ([{"n": 1, "sed": 3}], "unknown field 'sed'; a row may hold n, seed, sampler, steps, eta, class, guidance"),
        ([{"n": 1, "guidance": 2.0}], "the model knows no classes"),
        ([{"n": 1, "class": "rose"}], "the model knows no classes"),
    ],
)
def test_what_is_missing_or_unknown_is_refused(loaded, published, rows, reason):
    assert refusal(loaded(published), *rows).startswith(reason)


def test_what_a_model_with_classes_does_not_know_is_refused(loaded, published_conditional):
    model = loaded(published_conditional)
    assert "unknown class 'ross'; did you mean rose (8)?" in refusal(model, {"n": 1, "class": "ross"})
    assert "unknown class 7; the model knows 01, nan (5), rose (8)" in refusal(model, {"n": 1, "class": 7})


def test_a_request_is_bounded_as_a_whole(loaded, published, published_conditional):
    model = loaded(published, max_images=4, max_network_calls=20)
    assert refusal(model, {"n": 5}) == "n must be a whole number in 1 … 4, got 5"
    reason = refusal(model, {"n": 3, "steps": 1}, {"n": 2, "steps": 1})
    assert reason == "a request gives at most 4 images, got 5 in all rows"
    assert len(model.predict([{"n": 2, "steps": 10}])) == 1
    assert refusal(model, {"n": 3, "steps": 7}).startswith("a request takes at most 20 network calls, got 21")
    # Guidance calls the network twice; without the class, or with it alone, once is enough.
    model = loaded(published_conditional, max_network_calls=20)
    assert refusal(model, {"n": 2, "steps": 6, "guidance": 2}).startswith("a request takes at most 20 network calls")
    assert len(model.predict([{"n": 2, "steps": 6, "guidance": 0}])) == 1


@pytest.fixture
def clock(monkeypatch):
    """Stands still unless it is moved."""
    now = [0.0]
    monkeypatch.setattr("tracking.served_model.monotonic", lambda: now[0])
    return now


def overdue(model, *rows):
    from tracking.served_model import OverdueRequest

    with pytest.raises(OverdueRequest) as refused:
        model.predict(list(rows))
    assert refused.value.get_http_status_code() == 504
    return refused.value.reason


@pytest.fixture
def served(loaded, published, monkeypatch, clock):
    """The model as a server loads it that waits for seven seconds; each call of the network takes one."""
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "7")
    model = loaded(published)
    model.model.unet.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 1.0))
    return model


def test_a_request_that_the_server_has_given_up_is_drawn_no_further(served, clock):
    reason = overdue(served, {"n": 1, "steps": 4}, {"n": 1, "steps": 10})
    assert reason.startswith("the request took longer than 7 seconds")
    assert clock == [7.0], "not a call more"
    # The next one has its turn, and its own time.
    assert len(served.predict([{"n": 1, "steps": 6}])) == 1


def test_a_request_waits_for_its_turn_no_longer_than_the_server(served):
    served.seconds = 0.05
    with served.turn:
        assert overdue(served, {"n": 1}).startswith("the request took longer than 0.05 seconds")
    served.seconds = 60
    assert len(served.predict([{"n": 1, "steps": 1}])) == 1


def test_without_a_server_a_request_may_take_any_time(loaded, published, clock, monkeypatch):
    monkeypatch.delenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", raising=False)
    model = loaded(published)
    model.model.unet.register_forward_hook(lambda *_: clock.__setitem__(0, clock[0] + 1e6))
    assert len(model.predict([{"n": 1, "steps": 20}])) == 1
