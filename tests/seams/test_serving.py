"""The champion is registered by the pipeline, served by MLflow's own server, and replaced at a real one."""

import base64
import io
import json
import os

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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"inputs": [{"n": 1000}]}, "n must be"),
        ({"inputs": [{"n": float("nan")}]}, "n must be"),
        ({"inputs": [4]}, "Expected dict, but got int"),
        ({"dataframe_records": [{"n": 4}]}, "dictionary with 'inputs' key"),
        ("{", "JSON"),
    ],
)
def test_what_cannot_be_drawn_is_answered_by_400_without_a_traceback(address, content, words):
    answer = post(address, content)
    assert answer.status_code == 400
    assert words in answer.json()["message"] and "Traceback" not in answer.text


def kid(mean):
    name = "kid_efficientnet_lite0"
    return {name: mean, f"{name}_low": mean - 0.01, f"{name}_high": mean + 0.01}


def test_promotion_and_refusal_at_an_mlflow_server(checkout, tmp_path, monkeypatch, capsys):
    metrics = checkout.folder / "build/metrics.json"
    measured = json.loads(metrics.read_text())
    activate(None, {"register": {"model_name": "tulips"}}, checkout.folder / "params.yaml")

    def register_with(figures):
        """In this process: each of its own would take seconds for its imports."""
        metrics.unlink()  # a link into the cache is not to be written through
        metrics.write_text(json.dumps(measured | figures))
        register(read_params())
        return capsys.readouterr().out

    def champion():
        return client.get_registered_model("tulips").aliases["champion"]

    with mlflow_server(tmp_path / "tracking", checkout.environment) as address:
        client = MlflowClient(address)
        monkeypatch.chdir(checkout.folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as the stage does, whose process this is not

        assert "register: version 1 becomes champion: there was no champion" in register_with(kid(0.5))
        assert champion() == "1"
        tags = client.get_model_version("tulips", "1").tags
        assert tags.keys() >= {"git_commit", "dvc_data", "dvc_dataset", "profile", "contents_sha256", "promotion"}
        lock = checkout.read_yaml("dvc.lock")["stages"]["train"]["outs"]
        assert tags["dvc_model"] == {out["path"]: out["md5"] for out in lock}["build/model"]
        assert float(tags["evaluate.kid_efficientnet_lite0"]) == 0.5

        assert "version 2 becomes champion: its whole interval lies below" in register_with(kid(0.4))
        assert champion() == "2"

        said = register_with(kid(0.39))
        assert "version 3 does not become champion: the intervals overlap" in said and champion() == "2"
        refused = client.get_model_version("tulips", "3")
        assert refused.tags["promotion"].startswith("Did not become champion: the intervals overlap")
        assert "Did not become champion: the intervals overlap" in refused.description

        said = register_with(kid(0.1) | {"dataset_md5": "0" * 32})
        assert "version 4 does not become champion" in said and "in another way than the champion, version 2" in said
        assert "`flowers promote 4` makes it champion all the same" in said and champion() == "2"
        promoted = checkout.with_environment(MLFLOW_TRACKING_URI=address).run(*command("promote", "4"))
        assert "promote: tulips version 4 is the champion, after 2" in promoted and champion() == "4"
