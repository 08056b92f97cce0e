"""Checkpoints: exact, whole, and never another experiment's."""

import itertools
import json
import re
import shutil
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ddpm.checkpoint import CheckpointError, fingerprint_of, list_checkpoints, load_checkpoint, save_checkpoint, step_of
from tests.ddpm.small_training import EXTRA, SHORT, assert_same_bits, assert_same_weights, snapshot, start

EXPERIMENT = {"params": {"widths": [8, 16], "learning_rate": 0.01}, "code": "a1b2"}
NOTES = {"run": "a1b2", "seconds": 1.5, "losses": [0.5, 0.25], "ünïcode": None}


@pytest.fixture
def path(tmp_path, trained):
    """The checkpoint of a short training."""
    return save_checkpoint(tmp_path, trained, EXPERIMENT, NOTES, keep=1)


def assert_refused(path, message, experiment=EXPERIMENT):
    """Loading the checkpoint is an error that says why, and leaves the state as it was."""
    state, before = start(SHORT, seed=1), start(SHORT, seed=1)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, state, experiment)
    assert_same_bits(snapshot(state), snapshot(before))


def test_all_of_a_state_comes_back_exactly(tmp_path, trained_with_extra_averages):
    trained = trained_with_extra_averages
    path = save_checkpoint(tmp_path / "new" / "folder", trained, EXPERIMENT, NOTES, keep=1)
    loaded = start(EXTRA, seed=1)
    assert load_checkpoint(path, loaded, EXPERIMENT) == NOTES
    assert loaded.step == 3
    assert_same_weights(trained.model, loaded.model)
    assert [ema.decay for ema in loaded.extra_emas] == [0.9999, 0.9]
    for one, other in zip([trained.ema, *trained.extra_emas], [loaded.ema, *loaded.extra_emas], strict=True):
        assert other.num_updates == 3
        assert_same_weights(one.module, other.module)
    modules = [trained.model, trained.ema.module, *(ema.module for ema in trained.extra_emas)]
    for one, other in itertools.combinations(modules, 2):
        assert (one.first_conv.weight != other.first_conv.weight).any()
    ours, theirs = trained.optimizer.state_dict(), loaded.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys() == set(range(len(list(trained.model.parameters()))))
    for index, moments in ours["state"].items():
        assert moments.keys() == {"step", "exp_avg", "exp_avg_sq"}
        torch.testing.assert_close(theirs["state"][index], moments, rtol=0, atol=0)


def test_loaded_moments_lie_in_memory_as_their_weights_do(path):
    # The fused Adam goes through weights and moments in the order of memory, and never looks at the strides.
    loaded = start(SHORT, seed=1)
    load_checkpoint(path, loaded, EXPERIMENT)
    weight = loaded.model.first_conv.weight
    assert not weight.is_contiguous()
    assert loaded.optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    assert loaded.optimizer.state[weight]["exp_avg_sq"].stride() == weight.stride()


def test_a_state_before_its_first_step_comes_back(tmp_path):
    state, loaded = start(SHORT), start(SHORT, seed=1)
    load_checkpoint(save_checkpoint(tmp_path, state, EXPERIMENT, {}, keep=1), loaded, EXPERIMENT)
    assert_same_bits(snapshot(loaded), snapshot(state))


def test_a_file_holds_no_pickle(path, model_folder):
    for file in (path, model_folder / "averaged.safetensors", model_folder / "raw.safetensors"):
        data = file.read_bytes()
        (header_size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + header_size])
        header.pop("__metadata__", {})
        # Nothing but plain numbers from the end of the header to the end of the file.
        assert {entry["dtype"] for entry in header.values()} == {"F32"}
        ends = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        assert ends[0][0] == 0 and all(one[1] == other[0] for one, other in itertools.pairwise(ends))
        assert 8 + header_size + ends[-1][1] == len(data)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"code": "c3d4"}, 'code was "a1b2" and is "c3d4"'),
        # Only parameters that differ, each by its whole name.
        (
            {"params": {"widths": [8, 16], "learning_rate": 0.02, "dropout": 0.5}},
            "params.dropout was null and is 0.5; params.learning_rate was 0.01 and is 0.02",
        ),
        ({"params": None}, 'params was {"widths": [8, 16], "learning_rate": 0.0… and is null'),
        ({"code": "c" * 50}, f'code was "a1b2" and is "{"c" * 39}…'),
    ],
)
def test_another_experiments_checkpoint_is_refused_and_changes_nothing(path, changes, named):
    assert_refused(path, f"{path}.* another experiment: {re.escape(named)}$", EXPERIMENT | changes)


def test_a_checkpoint_of_another_version_of_the_network_is_refused(path, monkeypatch):
    monkeypatch.setattr("ddpm.checkpoint.FORMAT", 1)
    assert_refused(path, "was written by another version")


def test_a_fingerprint_is_of_the_content_alone():
    assert fingerprint_of({"a": 1, "b": {"c": [2], "d": None}}) == fingerprint_of({"b": {"d": None, "c": (2,)}, "a": 1})
    assert len({fingerprint_of(one) for one in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": {"a": 1}}, {})}) == 5
    assert len(fingerprint_of({})) == 64


def truncate(data, part):
    return data[: int(part * len(data))]


def flip_a_bit(data, part):
    data, (header_size,) = bytearray(data), struct.unpack("<Q", data[:8])
    data[8 + header_size + int(part * (len(data) - 9 - header_size))] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        *((truncate, part) for part in (0.0, 0.001, 0.5, 0.999)),
        *((flip_a_bit, part) for part in (0.0, 0.3, 0.7, 1.0)),
        *((lambda _, content: content, content) for content in (b"\x80\x04\x95" + bytes(1000), b"{" * 1000)),
    ],
)
def test_a_damaged_or_missing_checkpoint_is_refused_and_changes_nothing(path, damage, part):
    path.write_bytes(damage(path.read_bytes(), part))
    assert_refused(path, r"is damaged: .+")
    path.unlink()
    assert_refused(path, r"is damaged: .+")


def rewrite(path, change):
    """Write the checkpoint anew with other metadata, as safetensors that are whole."""
    with safe_open(path, framework="pt") as file:
        metadata = change(dict(file.metadata()))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("name", ["experiment", "step", "num_ema_updates", "notes", "sha256"])
@pytest.mark.parametrize("change", ["missing", "altered", "all missing"])
def test_metadata_that_are_not_those_written_are_found(path, name, change):
    def changed(metadata):
        value = metadata.pop(name)
        return {"missing": metadata, "altered": metadata | {name: value + " "}, "all missing": None}[change]

    rewrite(path, changed)
    assert_refused(path, "is damaged")


@pytest.mark.parametrize(
    ("steps", "keep", "keep_every", "kept"),
    [
        # By number, not by name or time: 9 comes before 10, and 1000 is written first.
        ([9, 10, 1000, 1001], 3, None, [10, 1000, 1001]),
        ([1000, 1001, 5], 1, None, [5, 1001]),  # the one just written, beside newer ones
        (range(1, 12), 2, 4, [4, 8, 10, 11]),
        (range(1, 12), 2, None, [10, 11]),
    ],
)
def test_the_newest_and_milestones_are_kept(tmp_path, steps, keep, keep_every, kept):
    (tmp_path / "averaged.safetensors").write_text("")
    state = start(SHORT)
    for state.step in steps:
        save_checkpoint(tmp_path, state, EXPERIMENT, {}, keep, keep_every)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == kept
    assert (tmp_path / "averaged.safetensors").exists()


def test_saving_a_step_again_replaces_it(tmp_path, trained):
    save_checkpoint(tmp_path, trained, {"name": "old"}, {"number": 1}, keep=2)
    path = save_checkpoint(tmp_path, trained, {"name": "new"}, {"number": 2}, keep=2)
    assert list_checkpoints(tmp_path) == [path]
    assert load_checkpoint(path, start(SHORT, seed=1), {"name": "new"}) == {"number": 2}


def test_only_checkpoints_are_listed(tmp_path, path):
    # Left behind by an end in the midst of writing, or neighbours of another kind.
    left_behind = (f".{path.stem}.4711.tmp.safetensors", "step_000000009.safetensors.tmp", "step_9.safetensors")
    for name in (*left_behind, "averaged.safetensors", "notes.txt"):
        shutil.copy(path, tmp_path / name)
    assert list_checkpoints(tmp_path) == [path] and list_checkpoints(tmp_path / "nowhere") == []


def test_a_failure_while_saving_keeps_the_checkpoints_before(tmp_path, trained, full_disk):
    path = tmp_path / "step_000000003.safetensors"
    path.write_bytes(b"whole")
    for trained.step in (3, 4):  # over itself, and as the next
        with pytest.raises(OSError, match="no space left"):
            save_checkpoint(tmp_path, trained, EXPERIMENT, {}, keep=1)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"whole"
