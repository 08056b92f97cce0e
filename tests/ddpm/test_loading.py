"""Models by folder and by address, and what they draw."""

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
from ddpm.published import DiffusionConfig, load_model, publish_model


@pytest.fixture
def folder(tmp_path, trained):
    publish_model(tmp_path / "model", trained, DiffusionConfig(num_timesteps=10), image_size=8)
    return tmp_path / "model"


def weights_of(model):
    return model.unet.last_conv.weight


def test_a_folder_is_loaded_by_its_path_or_name(folder):
    expected = weights_of(load_model(folder))
    for source in (folder, str(folder)):
        torch.testing.assert_close(weights_of(ddpm.load(source, device="cpu")), expected, rtol=0, atol=0)
    raw = weights_of(load_model(folder, "raw"))
    torch.testing.assert_close(weights_of(ddpm.load(folder, "raw", "cpu")), raw, rtol=0, atol=0)


def test_the_only_weights_are_taken(folder):
    raw = weights_of(load_model(folder, "raw"))
    (folder / "averaged.safetensors").unlink()
    torch.testing.assert_close(weights_of(ddpm.load(folder)), raw, rtol=0, atol=0)


def test_the_device_is_the_best_there_is_or_the_one_named(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("ddpm.devices.best_device", lambda: torch.device("cuda", 1))  # which need not be there
    monkeypatch.setattr("ddpm.published.load_model", lambda *given: asked.append(given[2]) or load_model(*given[:2]))
    ddpm.load(folder)
    ddpm.load(folder, device="cpu")
    assert asked == [torch.device("cuda", 1), "cpu"]


def test_the_callers_process_is_left_as_it_is(folder, monkeypatch):
    touched = []
    monkeypatch.setattr("ddpm.devices.keep_freed_memory", lambda: touched.append("malloc"))
    before = torch.backends.cudnn.benchmark
    ddpm.load(folder).draw(1, steps=1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("ddpm.published.load_model", lambda *_: None)
    ddpm.load(folder)
    assert touched == [] and torch.backends.cudnn.benchmark == before


def test_no_model_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="holds no usable model"):
        ddpm.load(tmp_path)


def test_an_address_is_opened_by_the_store_of_its_scheme(folder, monkeypatch):
    closed = []

    @contextmanager
    def store(address):
        yield folder
        closed.append(address)

    monkeypatch.setattr(loading, "_installed_stores", lambda: {"tulips": SimpleNamespace(load=lambda: store)})
    loaded = ddpm.load("tulips:/red@best", "raw", "cpu")
    torch.testing.assert_close(weights_of(loaded), weights_of(load_model(folder, "raw")), rtol=0, atol=0)
    assert closed == ["tulips:/red@best"]


@pytest.mark.parametrize("address", ["roses:/red@best", "s3://bucket/model"])
def test_an_address_that_nothing_opens_is_a_clear_error(address, monkeypatch):
    monkeypatch.setattr(loading, "_installed_stores", dict)
    scheme = address.partition(":")[0]
    with pytest.raises(CheckpointError, match=rf"nothing installed opens addresses of {scheme}: \(known: none\)"):
        ddpm.load(address)


def test_a_store_that_cannot_be_imported_is_a_clear_error(monkeypatch):
    point = EntryPoint("roses", "no_such_package:opened", loading.STORES)
    monkeypatch.setattr(loading, "_installed_stores", lambda: {"roses": point})
    with pytest.raises(CheckpointError, match=r"roses:/red lies in a store .* cannot be opened: No module named"):
        ddpm.load("roses:/red")


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("dpm_solver++", 0.0)])
def test_a_model_draws_what_its_sampler_draws(folder, sampler, eta):
    model = load_model(folder)
    noise = ImageNoise(7, range(5), (3, 8, 8))
    expected = to_pixels(sample(sampler, model.unet, model.diffusion, noise, 4, eta))
    asked = {"seed": 7, "sampler": sampler, "steps": 4, "eta": eta, "precision": "float32"}
    torch.testing.assert_close(model.draw(5, **asked), expected, rtol=0, atol=0)
    # In batches but for the rounding, and whether more are asked for or not.
    batched = model.draw(7, batch_size=2, **asked)
    assert batched.shape == (7, 3, 8, 8) and batched.dtype == torch.uint8
    assert (batched[:5].int() - expected.int()).abs().max() <= 1


def test_drawing_leaves_no_graph(folder):
    model = load_model(folder)
    model.unet.requires_grad_(True)
    assert not model.draw(1, steps=1).requires_grad


def test_in_bfloat16_the_images_are_those_of_weights_cast_at_each_call(folder):
    model = load_model(folder)
    with arithmetic("bfloat16", torch.device("cpu")):
        expected = to_pixels(sample("ddim", model.unet, model.diffusion, ImageNoise(7, range(3), (3, 8, 8)), 4))
    flags = []
    model.unet.register_forward_pre_hook(lambda unet, _: flags.append([p.requires_grad for p in unet.parameters()]))
    drawn = model.draw(3, seed=7, steps=4, precision="bfloat16")
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)
    assert len(flags) == 4 and all(map(all, flags)), "autocast keeps the casts of trainable weights alone"
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_each_step_is_told_and_may_end_the_drawing(folder):
    model, told = load_model(folder), []
    model.draw(3, steps=4, batch_size=2, on_step=lambda step: told.append((step.number, len(step.x_t))))
    assert told == [(1, 2), (2, 2), (3, 2), (4, 2), (1, 1), (2, 1), (3, 1), (4, 1)]

    def give_up(step):
        told.append(step.number)
        if step.number == 2:
            raise KeyError

    told.clear()
    with pytest.raises(KeyError):
        model.draw(3, steps=4, on_step=give_up)
    assert told == [1, 2] and torch.is_grad_enabled()


@pytest.mark.parametrize("n", [0, -1])
def test_no_images_are_an_error(folder, n):
    with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
        load_model(folder).draw(n)
