"""The champion is registered by the pipeline, served by MLflow's own server, and replaced at a real one."""

import base64
import io
import json
import os
import sys

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from contract.params import activate, read_params
from stages.register import main as register
from tests.seams.checkout import command
from tests.seams.servers import free_port, mlflow_server, running, wait_for_server, web

pytestmark = pytest.mark.xdist_group("checkouts")  # one worker, which makes the experiment once


@pytest.fixture(scope="module")
def address(reproduced, tmp_path_factory):
    """Serve the champion of the small experiment as `make serve` does; yield the address."""
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "serve.log"
    # As in a shell that has not activated the environment.
    bare = reproduced.checkout.environment | {"PATH": os.defpath}
    with running(command("serve", "--port", str(port)), reproduced.checkout.folder, bare, log) as server:
        wait_for_server(server, f"http://127.0.0.1:{port}/ping", log)
        said = log.read_text()
        assert f"serve: flowers-ddpm version 1 at http://127.0.0.1:{port}/invocations; Ctrl-C ends it" in said
        yield f"http://127.0.0.1:{port}/invocations"


def post(address, content):
    """Return the server's answer to JSON; NaN is sent as Python writes it."""
    body = content if isinstance(content, str) else json.dumps(content)
    return web.post(address, data=body, headers={"Content-Type": "application/json"}, timeout=60)


def drawn(answer):
    """Return the images of each row."""
    assert answer.status_code == 200, answer.text
    return [
        np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(word)))) for word in row["png_base64"]])
        for row in answer.json()["predictions"]
    ]


def test_the_server_draws_the_images_of_the_sample_stage(address, reproduced):
    checkout = reproduced.checkout
    wanted = checkout.read_yaml("params.yaml")["sample"]
    row = {
        "n": wanted["num_images"],
        "seed": wanted["seed"],
        "sampler": wanted["sampler"],
        "steps": wanted["num_sampling_steps"],
        "eta": wanted["eta"],
    }
    (images,) = drawn(post(address, {"inputs": [row]}))
    np.testing.assert_array_equal(images, np.load(checkout.folder / "build/samples/samples.npy"))


def test_rows_are_drawn_each_by_its_own_fields_and_all_but_n_are_optional(address):
    rows = [{"n": 1}, {"n": 2, "seed": 0, "steps": 50}, {"n": 2, "seed": 1, "sampler": "ddpm"}, {"n": 2, "eta": 1}]
    few, same, other, noisy = drawn(post(address, {"inputs": rows}))
    assert few.shape == (1, 16, 16, 3) and same.shape == other.shape == (2, 16, 16, 3)
    assert np.abs(few[0].astype(int) - same[0]).max() <= 1  # alone or in company, but for the rounding
    assert not np.array_equal(same, other) and not np.array_equal(same, noisy)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"inputs": [{"n": 1000}]}, "n must be"),
        ({"inputs": [{"n": float("nan")}]}, "n must be"),
        ({"inputs": [{"n": 1, "sed": 1}]}, "unknown field 'sed'"),
        ({"inputs": []}, "inputs holds no row"),
        ({"inputs": [4]}, "Expected dict, but got int"),
        ({"dataframe_records": [{"n": 4}]}, "dictionary with 'inputs' key"),
        ("{", "JSON"),
    ],
)
def test_what_cannot_be_drawn_is_answered_by_400_without_a_traceback(address, content, words):
    answer = post(address, content)
    assert answer.status_code == 400
    assert words in answer.json()["message"] and "Traceback" not in answer.text


def test_the_champion_is_loaded_by_its_address_in_python(reproduced):
    program = (
        "import ddpm, numpy\n"
        "model = ddpm.load('models:/flowers-ddpm@champion')\n"
        "drawn = model.draw(12, seed=0, steps=4).permute(0, 2, 3, 1).numpy()\n"
        "print((drawn == numpy.load('build/samples/samples.npy')).all())\n"
    )
    assert reproduced.checkout.run(sys.executable, "-c", program).splitlines()[-1] == "True"


@pytest.fixture
def tracker(tmp_path, checkout, monkeypatch, capsys):
    """An MLflow server's registry, and a checkout that registers the experiment there with other figures."""
    with mlflow_server(tmp_path / "tracking", checkout.environment) as address:
        monkeypatch.chdir(checkout.folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as the stage does, whose process this is not
        yield Tracker(address, checkout.with_environment(MLFLOW_TRACKING_URI=address), capsys)


class Tracker:
    def __init__(self, address, checkout, capsys):
        self.checkout = checkout
        self._client, self._capsys = MlflowClient(address), capsys
        self._metrics = checkout.folder / "build/metrics.json"
        self._measured = json.loads(self._metrics.read_text())
        activate(None, {"register": {"model_name": "tulips"}}, checkout.folder / "params.yaml")

    def register(self, **changes):
        """In this process: each of its own would take seconds for its imports."""
        self._metrics.unlink()  # a link into the cache is not to be written through
        self._metrics.write_text(json.dumps(self._measured | changes))
        register(read_params())
        return self._capsys.readouterr().out

    def promote(self, number):
        return self.checkout.run(*command("promote", number))

    def champion(self):
        return self._client.get_registered_model("tulips").aliases["champion"]

    def version(self, number):
        return self._client.get_model_version("tulips", number)


def kid(mean):
    name = "kid_efficientnet_lite0"
    return {name: mean, f"{name}_low": mean - 0.01, f"{name}_high": mean + 0.01}


def test_promotion_and_refusal_at_an_mlflow_server(tracker):
    assert "register: version 1 becomes champion: there was no champion" in tracker.register(**kid(0.5))
    assert tracker.champion() == "1"
    tags = tracker.version("1").tags
    assert tags.keys() >= {"git_commit", "dvc_data", "dvc_dataset", "profile", "contents_sha256", "promotion"}
    lock = tracker.checkout.read_yaml("dvc.lock")["stages"]["train"]["outs"]
    assert tags["dvc_model"] == {out["path"]: out["md5"] for out in lock}["build/model"]
    assert float(tags["evaluate.kid_efficientnet_lite0"]) == 0.5

    assert "version 2 becomes champion: its whole interval lies below" in tracker.register(**kid(0.4))
    assert tracker.champion() == "2"

    said = tracker.register(**kid(0.39))
    assert "version 3 does not become champion: the intervals overlap" in said and tracker.champion() == "2"
    refused = tracker.version("3")
    assert refused.tags["promotion"].startswith("Did not become champion: the intervals overlap")
    assert "Did not become champion: the intervals overlap" in refused.description

    said = tracker.register(**kid(0.1), dataset_md5="0" * 32)
    assert "version 4 does not become champion: it was evaluated in another way than the champion, version 2" in said
    assert "`flowers promote 4` makes it champion all the same" in said and tracker.champion() == "2"
    assert "promote: tulips version 4 is the champion, after 2" in tracker.promote("4") and tracker.champion() == "4"
