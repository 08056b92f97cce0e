"""The registered model in MLflow: found, promoted, opened, and whole where the project is not."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

import ddpm
from contract.errors import StageError
from ddpm import loading
from ddpm.checkpoint import CheckpointError
from ddpm.published import load_model
from tracking.connection import TrackingError
from tracking.registry import CONTENTS_TAG, Registry
from tracking.runs import open_run

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # in MLflow's own tables


@pytest.fixture
def registry(client):
    return Registry("flowers")


@pytest.fixture
def add(client, model, make_params, project, monkeypatch, registry):
    """Registers build/model with these weights and tags."""
    folder = Path.cwd()
    with open_run(make_params()) as tracker:
        pass

    def register(weights="averaged", **tags):
        monkeypatch.chdir(project)  # whose ddpm/ goes with the model
        version = registry.add(tracker.run_id, folder / model, weights, tags, {"image_size": 16})
        monkeypatch.chdir(folder)
        return version

    return register


def test_versions_are_found_by_contents_promoted_and_noted(client, registry, add, recwarn):
    assert registry.champion() is None and registry.find("any") is None
    first = add(**{CONTENTS_TAG: "one", "git_commit": "c0ffee"})
    second = add(**{CONTENTS_TAG: "other"})
    assert recwarn.list == []  # the terminal belongs to the stage
    assert (first.number, second.number) == ("1", "2")
    assert registry.find("one").number == "1" and registry.find("none") is None
    assert registry.champion() is None
    registry.promote("1")
    registry.note("1", {"promotion": "by hand"}, "The first.")
    champion = registry.champion()
    assert champion.number == "1"
    assert champion.tags == {CONTENTS_TAG: "one", "git_commit": "c0ffee", "promotion": "by hand"}
    assert client.get_model_version("flowers", "1").description == "The first."
    registry.promote("2")
    assert registry.champion().number == "2"
    client.delete_model_version("flowers", "2")  # takes the alias with it
    assert registry.champion() is None and registry.find("other") is None


def halve_the_weights(model):
    weights = model / "averaged.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def ask_for_an_odd_size(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"image_size": 15}))


@pytest.mark.parametrize("damage", [halve_the_weights, ask_for_an_odd_size])
def test_a_model_that_cannot_draw_is_refused_and_nothing_is_logged(client, add, model, folder, damage):
    damage(model)
    with pytest.raises(StageError, match="the model cannot draw an example, so it is not registered: "):
        add()
    assert client.search_registered_models() == [] and not (folder / "mlartifacts/models").exists()


def test_a_version_that_is_not_there_is_no_champion(registry, add):
    add()
    with pytest.raises(TrackingError, match=r"refused: .*not found"):
        registry.promote("9")


def test_a_registered_model_is_loaded_by_its_address(registry, add, model, installed_store):
    add("raw")
    registry.promote("1")
    loaded = ddpm.load("models:/flowers@champion", device="cpu")
    expected = load_model(model, "raw").draw(2, seed=3, steps=4)
    np.testing.assert_array_equal(loaded.draw(2, seed=3, steps=4), expected)


@pytest.fixture
def installed_store(monkeypatch, project):
    """The entry point as pyproject.toml declares it, whatever is installed."""
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]["entry-points"][loading.STORES]
    stores = {name: EntryPoint(name, value, loading.STORES) for name, value in declared.items()}
    monkeypatch.setattr(loading, "_installed_stores", lambda: stores)


@pytest.mark.parametrize("address", ["models:/flowers@champion", "models:/flowers/7", "models:/", "models:/m-none"])
def test_an_address_of_nothing_is_a_clear_error(registry, add, installed_store, address, folder):
    add()
    with pytest.raises(
        CheckpointError, match=rf"MLflow at sqlite:///{folder}/mlflow.db has no model {address} of this"
    ):
        ddpm.load(address)


def test_a_registered_model_draws_from_its_own_code(client, add, folder):
    """Logged, and loaded where the project is not."""
    add()
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    script = """
import base64, io, json, mlflow
from PIL import Image
model = mlflow.pyfunc.load_model("models:/flowers/1")
rows = [{"n": 2, "steps": 3}, {"n": 1, "seed": 5, "steps": 3}]
answers = [model.predict(rows) for _ in range(2)]
assert answers[0] == answers[1], "the same request gives other images"
words = [word for row in answers[0] for word in row["png_base64"]]
images = [Image.open(io.BytesIO(base64.b64decode(word))) for word in words]
import ddpm
metadata = model.metadata
print(json.dumps({
    "sizes": [[image.format, *image.size] for image in images],
    "distinct": len(set(words)),
    "code": ddpm.__file__,
    "schemas": [metadata.get_input_schema().to_dict(), metadata.get_output_schema().to_dict()],
    "metadata": metadata.metadata,
    "example": model.input_example,
}))
"""
    environment = dict(os.environ) | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["sizes"] == [["PNG", 16, 16]] * 3 and told["distinct"] == 3
    assert Path(told["code"]).is_relative_to(folder / "mlartifacts")
    (inputs,), (outputs,) = told["schemas"]
    assert (inputs["type"], inputs["values"]) == ("map", {"type": "any"})
    assert (outputs["type"], outputs["values"]["type"]) == ("map", "array")
    assert told["metadata"] == {"image_size": 16}
    (model_folder,) = (folder / "mlartifacts").glob("models/*/artifacts")
    published = sorted(path.name for path in (model_folder / "artifacts/model").iterdir())
    assert published == ["averaged.safetensors", "config.json"], "the evaluated weights and no others"
    assert json.loads((model_folder / "input_example.json").read_text())[0]["n"] == 1
    pinned = (model_folder / "requirements.txt").read_text().split()
    assert all("==" in line for line in pinned) and any(line.startswith("torch==") for line in pinned)
    assert [path.name for path in model_folder.rglob("*.pkl")] == []
