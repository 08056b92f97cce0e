"""What each task shows on the run page, and that it runs its own stage."""

import base64
import json
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.download import network_failed
from tasks.evaluate import metrics_table
from tasks.sample import embedded
from tasks.stage import StageFailedError
from tasks.train import mlflow_link

STAGES = ("download", "preprocess", "reference", "train", "sample", "evaluate", "register")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("build/model").mkdir(parents=True)
    Path("build/samples").mkdir()
    return tmp_path


@pytest.fixture
def trained(place):
    def write(run_id="abc", experiment_id="1"):
        run = {"mlflow_run_id": run_id, "mlflow_experiment_id": experiment_id}
        Path("build/model/run.json").write_text(json.dumps(run))

    return write


@pytest.mark.parametrize(
    ("uri", "base"),
    [
        (None, "http://127.0.0.1:5000"),
        ("", "http://127.0.0.1:5000"),
        ("sqlite:///elsewhere.db", "http://127.0.0.1:5000"),
        ("http://server:8080", "http://server:8080"),
        ("https://server/mlflow/", "https://server/mlflow"),
    ],
)
def test_the_link_leads_to_the_page_of_the_run(trained, monkeypatch, uri, base):
    trained()
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert mlflow_link() == f"{base}/#/experiments/1/runs/abc"


def test_without_a_run_there_is_no_link(trained):
    trained(run_id="", experiment_id="")
    assert mlflow_link() is None


def test_the_table_has_a_row_a_figure(tmp_path):
    metrics = {"fd_inception": 12.5, "num_samples": 8, "extractor": "inception"}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert metrics_table(tmp_path / "metrics.json") == [
        {"metric": "fd_inception", "value": 12.5},
        {"metric": "num_samples", "value": 8},
        {"metric": "extractor", "value": "inception"},
    ]


def test_the_picture_stands_in_the_page_itself(tmp_path):
    content = bytes(range(256))
    (tmp_path / "grid.png").write_bytes(content)
    page = embedded(tmp_path / "grid.png")
    before, _, data = page.partition("base64,")
    assert before == "![samples](data:image/png;" and base64.b64decode(data.removesuffix(")")) == content


@pytest.fixture
def shown(monkeypatch, trained):
    """Runs a task's function without Prefect; gives the stages that it ran and the artifacts that it made."""
    trained()
    Path("build/metrics.json").write_text('{"fd": 1.0}')
    Path("build/samples/grid.png").write_bytes(b"picture")

    def run(name):
        module = import_module(f"tasks.{name}")
        stages, artifacts = [], {}
        monkeypatch.setattr(module, "run_stage", stages.append)
        monkeypatch.setattr(module, "gpu_slot", nullcontext, raising=False)
        for kind in ("link", "markdown", "table"):
            maker = f"create_{kind}_artifact"
            if hasattr(module, maker):
                monkeypatch.setattr(
                    module, maker, lambda *content, key, **options: artifacts.update({key: content or options["link"]})
                )
        task = getattr(module, name)
        assert task.name == name
        task.fn()
        return stages, artifacts

    return run


@pytest.mark.parametrize("name", STAGES)
def test_each_task_runs_its_own_stage(shown, name):
    assert shown(name)[0] == [name]


def test_artifacts_show_run_samples_and_metrics(shown):
    assert shown("train")[1] == {"mlflow-run": "http://127.0.0.1:5000/#/experiments/1/runs/abc"}
    assert shown("sample")[1] == {"samples": (embedded(Path("build/samples/grid.png")),)}
    assert shown("evaluate")[1] == {"metrics": ([{"metric": "fd", "value": 1.0}],)}


def test_without_tracking_no_link_is_made(shown, trained):
    trained(run_id="", experiment_id="")
    assert shown("train") == (["train"], {})


def test_only_the_network_is_tried_again():
    retries = {name: getattr(import_module(f"tasks.{name}"), name).retries for name in STAGES}
    assert retries["download"] > 0 and set(retries.values()) == {0, retries["download"]}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("download: https://host/a.tgz cannot be downloaded: timed out. What has arrived stays", True),
        ("download: https://host/a.tgz is refused: 404 Client Error. What has arrived stays", False),
        ("download: https://host/a.tgz is not the expected file: its md5 should be a, got b", False),
    ],
)
def test_a_download_is_tried_again_where_the_network_failed(said, expected):
    state = SimpleNamespace(data=StageFailedError(f"stage download failed:\n{said}"))
    assert network_failed(None, None, state) is expected
