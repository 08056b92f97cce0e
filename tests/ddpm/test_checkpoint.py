"""Checkpoints and published models: exact, whole, and never another experiment's."""

import dataclasses
import itertools
import json
import shutil
import struct

import pytest
import torch

from ddpm import (
    GaussianDiffusion,
    TrainingConfig,
    TrainingImages,
    TrainingState,
    UNet,
    cosine_betas,
    linear_betas,
    train,
)
from ddpm.checkpoint import (
    CheckpointError,
    DiffusionConfig,
    list_checkpoints,
    load_checkpoint,
    load_model,
    publish_model,
    save_checkpoint,
)

CONFIG = TrainingConfig(num_steps=3, learning_rate=1e-2, ema_decay=0.5, precision="float32")
NOTES = {"run": "a1b2", "seconds": 1.5, "losses": [0.5, 0.25], "ünïcode": None}


@pytest.fixture
def fresh(tiny_config):
    """Makes a state whose initial weights come from the seed."""

    def make(seed):
        torch.manual_seed(seed)
        return TrainingState.start(UNet(tiny_config), CONFIG)

    return make


@pytest.fixture
def trained(fresh):
    state = fresh(0)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for _ in train(state, TrainingImages(pixels, 2, seed=0), GaussianDiffusion(linear_betas(10)), CONFIG):
        pass
    return state


def assert_same_weights(module, other):
    assert module.state_dict().keys() == other.state_dict().keys()
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def save_steps(folder, state, steps, keep):
    for step in steps:
        state.step = step
        save_checkpoint(folder, state, "fingerprint", {}, keep)


def test_all_of_a_state_comes_back_exactly(tmp_path, trained, fresh):
    path = save_checkpoint(tmp_path / "new" / "folder", trained, "fingerprint", NOTES, keep=1)
    loaded = fresh(1)
    assert load_checkpoint(path, loaded, "fingerprint") == NOTES
    assert loaded.step == 3 and loaded.ema.num_updates == 3
    assert_same_weights(trained.model, loaded.model)
    assert_same_weights(trained.ema.module, loaded.ema.module)
    assert (trained.ema.module.first_conv.weight - trained.model.first_conv.weight).abs().max() > 0
    ours, theirs = trained.optimizer.state_dict(), loaded.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys() == set(range(len(list(trained.model.parameters()))))
    for index, moments in ours["state"].items():
        assert moments.keys() == theirs["state"][index].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, moment in moments.items():
            torch.testing.assert_close(theirs["state"][index][name], moment, rtol=0, atol=0)


def test_loaded_moments_lie_in_memory_as_their_weights_do(tmp_path, trained, fresh):
    # The fused Adam goes through weights and moments in the order of memory, and never looks at the strides.
    path = save_checkpoint(tmp_path, trained, "fingerprint", {}, keep=1)
    loaded = fresh(1)
    load_checkpoint(path, loaded, "fingerprint")
    weight = loaded.model.first_conv.weight
    assert not weight.is_contiguous()
    assert loaded.optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    assert loaded.optimizer.state[weight]["exp_avg_sq"].stride() == weight.stride()


def test_a_state_before_its_first_step_comes_back(tmp_path, fresh):
    state, loaded = fresh(0), fresh(1)
    load_checkpoint(save_checkpoint(tmp_path, state, "fingerprint", {}, keep=1), loaded, "fingerprint")
    assert loaded.step == loaded.ema.num_updates == 0
    assert_same_weights(state.model, loaded.model)
    assert not loaded.optimizer.state_dict()["state"]


def test_a_file_is_a_safetensors_file_and_holds_no_pickle(tmp_path, trained):
    save_checkpoint(tmp_path, trained, "fingerprint", NOTES, keep=1)
    publish_model(tmp_path, trained, DiffusionConfig(num_timesteps=10), image_size=8)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in files] == ["averaged.safetensors", "raw.safetensors", "step_000000003.safetensors"]
    for path in files:
        data = path.read_bytes()
        (header_size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + header_size])
        metadata = header.pop("__metadata__", {})
        # Nothing but plain numbers from the end of the header to the end of the file.
        assert {entry["dtype"] for entry in header.values()} == {"F32"}
        ends = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        assert ends[0][0] == 0 and all(one[1] == other[0] for one, other in itertools.pairwise(ends))
        assert 8 + header_size + ends[-1][1] == len(data)
    assert json.loads(metadata["notes"]) == NOTES


def test_another_experiments_checkpoint_is_refused_and_changes_nothing(tmp_path, trained, fresh):
    path = save_checkpoint(tmp_path, trained, "0123456789abcdef", NOTES, keep=1)
    loaded = fresh(1)
    with pytest.raises(
        CheckpointError, match=r"belongs to another experiment .*0123456789ab, this one is fedcba987654"
    ):
        load_checkpoint(path, loaded, "fedcba9876543210")
    assert loaded.step == 0
    assert_same_weights(loaded.model, fresh(1).model)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused_and_changes_nothing(tmp_path, trained, fresh, part):
    path = save_checkpoint(tmp_path, trained, "fingerprint", NOTES, keep=1)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    loaded = fresh(1)
    with pytest.raises(CheckpointError, match=r"is damaged: .+"):
        load_checkpoint(path, loaded, "fingerprint")
    assert loaded.step == 0
    assert_same_weights(loaded.model, fresh(1).model)


@pytest.mark.parametrize("garbage", [b"\x80\x04\x95" + bytes(1000), b"{" * 1000])
def test_a_file_of_something_else_is_refused(tmp_path, fresh, garbage):
    path = tmp_path / "step_000000001.safetensors"
    path.write_bytes(garbage)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path, fresh(1), "fingerprint")


def test_a_missing_checkpoint_is_refused(tmp_path, fresh):
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "step_000000001.safetensors", fresh(1), "fingerprint")


def test_the_newest_are_kept(tmp_path, fresh):
    # By number, not by name or time: 9 comes before 10, and 1000 is written first.
    save_steps(tmp_path, fresh(0), [9, 10, 1000, 1001], keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step_000000010.safetensors",
        "step_000001000.safetensors",
        "step_000001001.safetensors",
    ]


def test_the_one_just_written_is_kept_beside_newer_ones_of_another_experiment(tmp_path, fresh):
    save_steps(tmp_path, fresh(0), [1000, 1001], keep=2)
    save_steps(tmp_path, fresh(0), [5], keep=1)
    assert (tmp_path / "step_000000005.safetensors").exists()


def test_saving_a_step_again_replaces_it(tmp_path, trained, fresh):
    save_checkpoint(tmp_path, trained, "old", {"number": 1}, keep=2)
    path = save_checkpoint(tmp_path, trained, "new", {"number": 2}, keep=2)
    assert list_checkpoints(tmp_path) == [path]
    assert load_checkpoint(path, fresh(1), "new") == {"number": 2}


def test_only_checkpoints_are_listed(tmp_path, trained):
    path = save_checkpoint(tmp_path, trained, "fingerprint", {}, keep=2)
    # What an end in the midst of writing leaves behind, and neighbours that are none of ours.
    for name in (
        f".{path.stem}.4711.tmp.safetensors",
        "step_000000009.safetensors.tmp",
        "step_9.safetensors",
        "averaged.safetensors",
        "notes.txt",
    ):
        shutil.copy(path, tmp_path / name)
    assert list_checkpoints(tmp_path) == [path]


def test_neighbours_that_are_no_checkpoints_are_never_removed(tmp_path, fresh):
    (tmp_path / "averaged.safetensors").write_text("")
    save_steps(tmp_path, fresh(0), [1, 2, 3], keep=1)
    assert (tmp_path / "averaged.safetensors").exists()


def test_a_missing_folder_has_no_checkpoints(tmp_path):
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_a_failure_while_saving_keeps_the_checkpoints_before(tmp_path, trained, monkeypatch):
    path = save_checkpoint(tmp_path, trained, "fingerprint", {}, keep=1)
    before = path.read_bytes()

    def out_of_space(_tensors, file, _metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("ddpm.checkpoint.save_file", out_of_space)
    for step in (3, 4):  # over itself, and as the next
        trained.step = step
        with pytest.raises(OSError, match="no space left"):
            save_checkpoint(tmp_path, trained, "fingerprint", {}, keep=1)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


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
    state = TrainingState.start(UNet(config), CONFIG)
    publish_model(tmp_path, state, DiffusionConfig(), image_size=16)
    assert load_model(tmp_path).unet.config == config


def test_a_folder_without_a_model_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="holds no usable model"):
            load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "averaged.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_model_is_refused(tmp_path, trained, name, damage):
    publish_model(tmp_path, trained, DiffusionConfig(num_timesteps=10), image_size=8)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if damage == "truncated":
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="holds no usable model"):
        load_model(tmp_path)
