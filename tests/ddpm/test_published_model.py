"""Published models: exact, whole, and refused where they do not fit."""

import dataclasses
import json

import pytest
import torch

from ddpm import (
    TrainingState,
    UNet,
    cosine_betas,
    linear_betas,
)
from ddpm.checkpoint import (
    CheckpointError,
    DiffusionConfig,
    load_model,
    publish_model,
)
from tests.ddpm.small_training import SHORT


def outputs(model):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(x, torch.tensor([0, 9]))


def test_a_published_model_gives_the_outputs_of_the_one_trained(tmp_path, trained):
    publish_model(tmp_path / "model", trained, DiffusionConfig(num_timesteps=10), image_size=8)
    averaged, raw = load_model(tmp_path / "model"), load_model(tmp_path / "model", "raw")
    torch.testing.assert_close(outputs(averaged.unet), outputs(trained.ema.module), rtol=0, atol=0)
    torch.testing.assert_close(outputs(raw.unet), outputs(trained.model), rtol=0, atol=0)
    # Averaged and raw weights are told apart, and averaged is what one gets.
    assert (outputs(averaged.unet) - outputs(raw.unet)).abs().max() > 1e-3


def test_further_averages_are_published_by_their_decay(tmp_path, trained_with_extra_averages):
    trained = trained_with_extra_averages
    publish_model(tmp_path, trained, DiffusionConfig(num_timesteps=10), image_size=8)
    names = [path.stem for path in sorted(tmp_path.glob("*.safetensors"))]
    assert names == ["averaged", "averaged_0.9", "averaged_0.9999", "raw"]
    slow, fast = trained.extra_emas
    for weights, ema in (("averaged", trained.ema), ("averaged_0.9999", slow), ("averaged_0.9", fast)):
        loaded = load_model(tmp_path, weights).unet
        torch.testing.assert_close(outputs(loaded), outputs(ema.module), rtol=0, atol=0)
        assert not loaded.training


def test_an_average_that_was_not_published_is_refused(tmp_path, trained):
    publish_model(tmp_path, trained, DiffusionConfig(num_timesteps=10), image_size=8)
    with pytest.raises(CheckpointError, match=r"averaged_0\.9999"):
        load_model(tmp_path, "averaged_0.9999")


def test_a_loaded_model_is_ready_to_draw_from(tmp_path, trained, tiny_config):
    trained.model.train()
    publish_model(tmp_path, trained, DiffusionConfig(num_timesteps=10), image_size=8)
    for weights in ("averaged", "raw"):
        loaded = load_model(tmp_path, weights)
        assert not loaded.unet.training
        assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())
        assert loaded.unet.first_conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert loaded.unet.config == tiny_config
        assert loaded.image_size == 8


@pytest.mark.parametrize(
    ("config", "betas"),
    [
        (DiffusionConfig(), linear_betas(1000)),
        (DiffusionConfig("linear", 10, 0.1, 0.2), linear_betas(10, 0.1, 0.2)),
        (DiffusionConfig("cosine", 20, prediction="v"), cosine_betas(20)),
    ],
)
def test_the_diffusion_is_published_too(tmp_path, trained, config, betas):
    publish_model(tmp_path, trained, config, image_size=8)
    diffusion = load_model(tmp_path).diffusion
    torch.testing.assert_close(diffusion.betas, betas, rtol=0, atol=0)
    assert diffusion.prediction == config.prediction


def test_all_dimensions_of_the_network_are_published(tmp_path, tiny_config):
    config = dataclasses.replace(tiny_config, image_channels=1, num_res_blocks=2, time_embedding_dim=12, dropout=0.25)
    state = TrainingState.start(UNet(config), SHORT)
    publish_model(tmp_path, state, DiffusionConfig(), image_size=16)
    assert load_model(tmp_path).unet.config == config


def test_a_folder_without_a_model_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="holds no usable model"):
            load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "averaged.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_a_damaged_model_is_refused(tmp_path, trained, name, damage):
    publish_model(tmp_path, trained, DiffusionConfig(num_timesteps=10), image_size=8)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage == "truncated":
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    if damage == "garbage":
        (tmp_path / name).write_bytes(b"\x80\x04\x95" + bytes(1000))  # no UTF-8 either
    with pytest.raises(CheckpointError, match="holds no usable model"):
        load_model(tmp_path)


def without(name):
    return lambda config: config.pop(name)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    "change",
    [
        without("unet"),
        without("diffusion"),
        without("image_size"),
        lambda config: config.update(image_size="large"),
        lambda config: config["unet"].update(widths=[8, 32]),  # other weights
        lambda config: config["unet"].update(widths=[8, 9]),  # no network
        lambda config: config["unet"].update(heads=4),  # of another version
        lambda config: config["unet"].pop("widths"),  # whose default is another
        lambda config: config["diffusion"].update(schedule="sigmoid"),
        lambda config: config["diffusion"].update(prediction="score"),
        lambda config: config.update(unet=[]),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(tmp_path, trained, change):
    publish_model(tmp_path, trained, DiffusionConfig(num_timesteps=10), image_size=8)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config.json does not describe the weights beside it: .+"):
        load_model(tmp_path)
