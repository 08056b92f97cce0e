"""Published models: exact, whole, and refused where they do not fit."""

import dataclasses
import json

import pytest
import torch

from ddpm import TrainingState, UNet, cosine_betas, guided, linear_betas
from ddpm.checkpoint import CheckpointError
from ddpm.classes import ImageClass
from ddpm.published import DiffusionConfig, load_model, publish_model
from tests.ddpm.small_networks import TINY, awake
from tests.ddpm.small_training import SHORT, start


def outputs(model):
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(x, torch.tensor([0, 9]))


def test_a_published_model_gives_the_outputs_of_the_one_trained(model_folder, trained):
    averaged, raw = load_model(model_folder), load_model(model_folder, "raw")
    assert not averaged.unet.training and not raw.unet.training
    torch.testing.assert_close(outputs(averaged.unet), outputs(trained.ema.module), rtol=0, atol=0)
    torch.testing.assert_close(outputs(raw.unet), outputs(trained.model), rtol=0, atol=0)
    # Averaged and raw weights are told apart, and averaged is what one gets.
    assert (outputs(averaged.unet) - outputs(raw.unet)).abs().max() > 1e-3
    for unet in (averaged.unet, raw.unet):
        assert not any(parameter.requires_grad for parameter in unet.parameters())
        assert unet.first_conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_further_averages_are_published_by_their_decay(tmp_path, trained_with_extra_averages):
    trained = trained_with_extra_averages
    publish_model(tmp_path, trained, DiffusionConfig(num_timesteps=10), image_size=8)
    names = [path.stem for path in sorted(tmp_path.glob("*.safetensors"))]
    assert names == ["averaged", "averaged_0.9", "averaged_0.9999", "raw"]
    slow, fast = trained.extra_emas
    for weights, ema in (("averaged", trained.ema), ("averaged_0.9999", slow), ("averaged_0.9", fast)):
        loaded = load_model(tmp_path, weights).unet
        torch.testing.assert_close(outputs(loaded), outputs(ema.module), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"averaged_0\.5"):
        load_model(tmp_path, "averaged_0.5")


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


def test_all_dimensions_of_the_network_are_published(tmp_path):
    config = dataclasses.replace(TINY, image_channels=1, num_res_blocks=2, time_embedding_dim=12, dropout=0.25)
    publish_model(tmp_path, TrainingState.start(UNet(config), SHORT), DiffusionConfig(), image_size=16)
    model = load_model(tmp_path)
    assert model.unet.config == config and model.image_size == 16


CLASSES = (ImageClass(54, "sunflower"), ImageClass(77, "passion flower"))


@pytest.fixture
def conditional():
    state = start(SHORT, num_classes=2)
    awake(state.ema.module)
    return state


def test_classes_are_published_by_name_and_number(tmp_path, conditional, model_folder):
    publish_model(tmp_path / "conditional", conditional, DiffusionConfig(num_timesteps=10), 8, CLASSES)
    model = load_model(tmp_path / "conditional")
    assert model.classes == CLASSES and model.unet.config.num_classes == 2
    config = json.loads((tmp_path / "conditional" / "config.json").read_text())
    assert config["unet"]["num_classes"] == 2
    assert config["classes"] == [{"number": 54, "name": "sunflower"}, {"number": 77, "name": "passion flower"}]
    assert load_model(str(model_folder)).classes == ()


def test_guidance_needs_a_model_trained_with_label_dropout(tmp_path, conditional):
    publish_model(tmp_path, conditional, DiffusionConfig(num_timesteps=10), 8, CLASSES)
    model = load_model(tmp_path)
    model.bind_classes(None, [0, 1])
    for scale in (0.0, 2.0):
        with pytest.raises(ValueError, match=rf"without label dropout .* must be 1, got {scale}"):
            model.bind_classes(None, [0, 1], guidance_scale=scale)


def test_classes_are_bound_by_name_or_number(tmp_path, conditional):
    publish_model(tmp_path, conditional, DiffusionConfig(num_timesteps=10), 8, CLASSES, label_dropout=0.1)
    model = load_model(tmp_path)
    x_t, t = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 5, 9])
    cases = [(None, [0, 1, 0]), (["passion flower"], [1, 1, 1]), ([77, "Sunflower"], [1, 0, 1])]
    for classes, labels in cases:
        predict = model.bind_classes(classes, [2, 3, 4], guidance_scale=2.5)
        expected = guided(model.unet, torch.tensor(labels), 2.5)(x_t, t)
        torch.testing.assert_close(predict(x_t, t), expected, rtol=0, atol=0)
    calls = []
    other = torch.nn.Identity()
    other.forward = lambda x_t, _, labels: calls.append(labels.tolist()) or x_t
    model.bind_classes(None, [1, 2, 3], network=other)(x_t, t)
    assert calls == [[1, 0, 1]]


def test_a_model_without_classes_refuses_them(model_folder):
    model = load_model(model_folder)
    assert model.bind_classes(None, [0, 1]) is model.unet
    with pytest.raises(ValueError, match="the model knows no classes, got"):
        model.bind_classes(["sunflower"], [0, 1])
    with pytest.raises(ValueError, match=r"knows no classes, so guidance_scale must be 1, got 2\.0"):
        model.bind_classes(None, [0, 1], guidance_scale=2.0)


def test_another_number_of_classes_than_the_network_knows_is_refused(tmp_path, conditional, trained):
    with pytest.raises(ValueError, match="1 classes are named, and the network knows 2"):
        publish_model(tmp_path, conditional, DiffusionConfig(num_timesteps=10), 8, CLASSES[:1])
    with pytest.raises(ValueError, match="2 classes are named, and the network knows none"):
        publish_model(tmp_path, trained, DiffusionConfig(num_timesteps=10), 8, CLASSES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "averaged.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_a_damaged_model_is_refused(model_folder, name, damage):
    path = model_folder / name
    if damage == "missing":
        path.unlink()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if damage == "garbage":
        path.write_bytes(b"\x80\x04\x95" + bytes(1000))  # no UTF-8 either
    for folder in (model_folder, model_folder / "nowhere"):
        with pytest.raises(CheckpointError, match="holds no usable model"):
            load_model(folder)


def without(name):
    return lambda config: config.pop(name)


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without("format"), r"was made by an older version.* draw with version 0\.1\.0"),
        (lambda config: config.update(format=1), "holds a model of format 1, and this version draws format 2"),
        (lambda config: config.update(format="2"), 'holds a model of format "2"'),
    ],
)
def test_a_model_of_another_version_is_refused(model_folder, change, why):
    change_config(model_folder, change)
    with pytest.raises(CheckpointError, match=f"{model_folder} {why}"):
        load_model(model_folder)


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
        without("classes"),
        lambda config: config.update(classes=[{"number": 1, "name": "rose"}]),  # which the network does not know
        lambda config: config.update(classes=["rose"]),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(model_folder, change):
    change_config(model_folder, change)
    with pytest.raises(CheckpointError, match=r"config.json does not describe the weights beside it: .+"):
        load_model(model_folder)
