"""Worktrees use the cache and remotes of their checkout, and get raw data from there."""

import shutil
from pathlib import Path

import pytest

from contract.errors import FlowersError
from flows.workspaces.experiments import save_experiment
from flows.workspaces.shared_cache import bring_outputs, bring_raw_data
from flows.workspaces.worktrees import make_worktree
from tests.seams.checkout import Checkout

MODEL = {Path("build/model"): "the model"}


def pin_of(dataset, checkout):
    """Makes other raw data in the checkout, as another experiment would."""
    (checkout.folder / "data/images").write_text(f"the {dataset} images")
    checkout.dvc("add", "--quiet", "data")
    pin = checkout.folder / "data.dvc"
    text = pin.read_text().partition("meta:")[0]
    pin.write_text(f"{text}meta:\n  download: {{dataset: {dataset}}}\n")


def test_cache_and_remotes_are_those_of_the_checkout(checkout):
    (checkout.folder / ".dvc/config").write_text("['remote \"store\"']\n    url = ../../store\n")
    local = "[core]\n    remote = mine\n['remote \"mine\"']\n    url = ../../mine\n['remote \"store\"']\n    jobs = 3\n"
    (checkout.folder / ".dvc/config.local").write_text(local)
    checkout.commit("A store")
    with make_worktree(checkout.folder, "wise-owl") as folder:
        inside = Checkout(folder, checkout.environment)
        above = checkout.folder.parent
        listed = inside.dvc("remote", "list").split()
        assert listed[:2] == ["store", str(above / "store")]
        assert listed[2:4] == ["mine", str(above / "mine")]
        assert inside.dvc("config", "remote.store.jobs").strip() == "3"
        assert inside.dvc("config", "core.remote").strip() == "mine"
        assert inside.dvc("cache", "dir").strip() == str(checkout.folder / ".dvc/cache")
        assert inside.git("status", "--porcelain") == ""
    checkout.dvc("cache", "dir", "--local", "../caches")
    with make_worktree(checkout.folder, "wise-owl") as folder:
        assert Checkout(folder, checkout.environment).dvc("cache", "dir").strip() == str(above / "caches")


def test_the_cache_is_found_from_a_folder_of_any_name_and_from_another_disk(checkout):
    other = checkout.folder.parent / "disk"
    other.mkdir()
    (checkout.folder / "workspaces").symlink_to(other)
    for each in (checkout.copy(checkout.folder.parent / "a rose, 50%20 ü"), checkout):
        if each is not checkout:
            (each.folder / "workspaces").unlink()
        with make_worktree(each.folder, "wise-owl") as folder:
            assert Checkout(folder, each.environment).dvc("cache", "dir").strip() == str(each.folder / ".dvc/cache")


def test_raw_data_of_the_checkout_and_of_experiments_come_from_the_cache(checkout):
    pin_of("second", checkout)
    with make_worktree(checkout.folder, "wise-owl") as folder:
        bring_raw_data(checkout.folder, folder, {"dataset": "second"})  # pinned, not committed
        assert (folder / "data/images").read_text() == "the second images"
        save_experiment(folder, "second")
    checkout.git("checkout", "--quiet", "data.dvc")
    with make_worktree(checkout.folder, "wise-owl") as folder:
        bring_raw_data(checkout.folder, folder, {"dataset": "second"})  # known by the experiment alone
        assert (folder / "data/images").read_text() == "the second images"
        assert "dataset: second" in (folder / "data.dvc").read_text()


def test_raw_data_of_the_commit_come_from_the_cache_or_the_stage(checkout):
    cases = [("third", []), ("first", ["the first images"]), ("first", [])]  # never made, cached, lost from the cache
    for dataset, images in cases:
        with make_worktree(checkout.folder, "wise-owl") as folder:
            bring_raw_data(checkout.folder, folder, {"dataset": dataset})
            assert [path.read_text() for path in folder.glob("data/*")] == images
            assert Checkout(folder, checkout.environment).git("status", "--porcelain") == ""
        if images:
            shutil.rmtree(checkout.folder / ".dvc/cache")


@pytest.fixture
def trained(checkout):
    """The checkout with a stage that has made a model, committed."""
    (checkout.folder / "dvc.yaml").write_text(
        "stages:\n  train:\n    cmd: mkdir -p build/model && echo weights > build/model/weights\n"
        "    params: [train]\n    outs: [build/model]\n"
    )
    checkout.dvc("repro", "--quiet")
    checkout.commit("A model")
    return checkout


def test_a_model_comes_from_the_cache_or_from_the_remote_or_is_refused(trained):
    trained.dvc("remote", "add", "--local", "--default", "store", "../store")
    trained.dvc("push", "--quiet")
    for _ in ("from the cache", "from the remote"):
        with make_worktree(trained.folder, "wise-owl") as folder:
            bring_outputs(folder, MODEL, ["train"])
            assert (folder / "build/model/weights").read_text() == "weights\n"
        shutil.rmtree(trained.folder / ".dvc/cache")
    shutil.rmtree(trained.folder.parent / "store")
    with (
        make_worktree(trained.folder, "wise-owl") as folder,
        pytest.raises(FlowersError, match=r"does not hold the model \(build/model\)"),
    ):
        bring_outputs(folder, MODEL, ["train"])
