"""Models by folder and by address, and their images."""

from contextlib import contextmanager
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
import torch

import ddpm
from ddpm import ImageNoise, loading, sample
from ddpm.checkpoint import CheckpointError
from ddpm.devices import arithmetic
from ddpm.images import to_pixels
from ddpm.published import load_model
from tests.ddpm.small_networks import SAMPLERS


def weights_of(model):
    return model.unet.last_conv.weight


def test_a_folder_is_loaded_by_its_path_or_name(model_folder):
    averaged, raw = (weights_of(load_model(model_folder, name)) for name in ("averaged", "raw"))
    for source in (model_folder, str(model_folder)):
        torch.testing.assert_close(weights_of(ddpm.load(source, device="cpu")), averaged, rtol=0, atol=0)
    torch.testing.assert_close(weights_of(ddpm.load(model_folder, "raw", "cpu")), raw, rtol=0, atol=0)
    (model_folder / "averaged.safetensors").unlink()
    torch.testing.assert_close(weights_of(ddpm.load(model_folder)), raw, rtol=0, atol=0)


def test_the_best_device_is_taken_and_the_callers_process_left_alone(model_folder, monkeypatch):
    touched, devices = [], []
    monkeypatch.setattr("ddpm.devices.keep_freed_memory", lambda: touched.append("malloc"))
    monkeypatch.setattr("ddpm.published.load_model", lambda *given: devices.append(given[2]))
    before = torch.backends.cudnn.benchmark
    for has_gpu in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda has_gpu=has_gpu: has_gpu)
        ddpm.load(model_folder)
    ddpm.load(model_folder, device="meta")
    assert devices == [torch.device("cpu"), torch.device("cuda", 0), "meta"]
    assert touched == [] and torch.backends.cudnn.benchmark == before


@pytest.fixture
def stores(monkeypatch):
    """Install the given entry points as stores of models."""
    return lambda *points: monkeypatch.setattr(loading, "entry_points", lambda **_: points)


def test_an_address_is_opened_by_the_store_of_its_scheme(model_folder, stores):
    closed = []

    @contextmanager
    def store(address):
        yield model_folder
        closed.append(address)

    stores(SimpleNamespace(name="tulips", load=lambda: store))
    loaded = ddpm.load("tulips:/red@best", "raw", "cpu")
    torch.testing.assert_close(weights_of(loaded), weights_of(load_model(model_folder, "raw")), rtol=0, atol=0)
    assert closed == ["tulips:/red@best"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("roses:/red", "store of roses:/red cannot be opened: No module named"),
        ("s3://bucket/model", r"no installed package opens .* s3:, got s3://bucket/model \(known: roses\)"),
        ("nowhere", "holds no usable model"),
    ],
)
def test_a_model_that_cannot_be_found_is_a_clear_error(address, message, stores):
    stores(EntryPoint("roses", "no_such_package:opened", loading.STORES))
    with pytest.raises(CheckpointError, match=message):
        ddpm.load(address)


@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS)
def test_a_model_draws_the_images_of_its_sampler(model_folder, sampler, eta):
    model = load_model(model_folder)
    model.unet.requires_grad_(True)
    noise = ImageNoise(7, range(5), (3, 8, 8))
    expected = to_pixels(sample(sampler, model.unet, model.diffusion, noise, 4, eta))
    options = {"seed": 7, "sampler": sampler, "steps": 4, "eta": eta, "precision": "float32"}
    torch.testing.assert_close(model.draw(5, **options), expected, rtol=0, atol=0)
    # In batches the same but for rounding, and also with more images.
    batched = model.draw(7, batch_size=2, **options)
    assert batched.shape == (7, 3, 8, 8) and batched.dtype == torch.uint8 and not batched.requires_grad
    assert (batched[:5].int() - expected.int()).abs().max() <= 1


def test_in_bfloat16_the_images_are_those_of_weights_cast_at_each_call(model_folder):
    model = load_model(model_folder)
    with arithmetic("bfloat16", torch.device("cpu")):
        expected = to_pixels(sample("ddim", model.unet, model.diffusion, ImageNoise(7, range(3), (3, 8, 8)), 4))
    flags = []
    model.unet.register_forward_pre_hook(lambda unet, _: flags.append([p.requires_grad for p in unet.parameters()]))
    drawn = model.draw(3, seed=7, steps=4, precision="bfloat16")
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)
    assert len(flags) == 4 and all(map(all, flags)), "autocast keeps the casts of trainable weights alone"
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_each_step_is_reported_and_may_end_the_drawing(model_folder):
    model, seen = load_model(model_folder), []
    model.draw(3, steps=4, batch_size=2, on_step=lambda step: seen.append((step.number, len(step.x_t))))
    assert seen == [(1, 2), (2, 2), (3, 2), (4, 2), (1, 1), (2, 1), (3, 1), (4, 1)]

    def give_up(step):
        seen.append(step.number)
        if step.number == 2:
            raise KeyError

    seen.clear()
    with pytest.raises(KeyError):
        model.draw(3, steps=4, on_step=give_up)
    assert seen == [1, 2] and torch.is_grad_enabled()


@pytest.mark.parametrize("n", [0, -1])
def test_no_images_are_an_error(model_folder, n):
    with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
        load_model(model_folder).draw(n)
