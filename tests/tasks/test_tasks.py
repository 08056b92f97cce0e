"""What each task shows on the run page, and that it runs its own stage."""

import json
import logging
from contextlib import nullcontext
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from tasks import run_page
from tasks.download import network_failed
from tasks.evaluate import metrics_table
from tasks.run_page import embedded
from tasks.stage import StageFailedError
from tasks.train import SHOWN_LOSSES, losses_table

LOGGER = logging.getLogger("test")
STAGES = ("download", "preprocess", "reference", "train", "sample", "evaluate", "register")
THREE = SimpleNamespace(num_processes=3)
PARAMS = SimpleNamespace(reference=THREE, train=THREE, sample=THREE)


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


def test_the_table_has_a_row_a_figure(tmp_path):
    metrics = {"fd_inception": 12.5, "num_samples": 8, "extractor": "inception"}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert metrics_table(tmp_path / "metrics.json") == [
        {"metric": "fd_inception", "value": 12.5},
        {"metric": "num_samples", "value": 8},
        {"metric": "extractor", "value": "inception"},
    ]


def test_the_losses_are_thinned_evenly_and_keep_both_ends(tmp_path):
    steps = pd.DataFrame({"step": range(25, 25 * 101, 25), "loss": [1.0 / 3.0] * 100})
    steps.to_csv(tmp_path / "losses.csv", index=False)
    rows = losses_table(tmp_path / "losses.csv")
    assert len(rows) == SHOWN_LOSSES
    assert rows[0] == {"step": 25, "loss": 0.333333} and rows[-1]["step"] == 2500
    gaps = {b["step"] - a["step"] for a, b in pairwise(rows)}
    assert gaps == {50, 75}


@pytest.mark.parametrize("num_rows", [0, 1, 3, SHOWN_LOSSES])
def test_few_losses_are_all_shown(tmp_path, num_rows):
    pd.DataFrame({"step": range(num_rows), "loss": [0.5] * num_rows}).to_csv(tmp_path / "losses.csv", index=False)
    assert [row["step"] for row in losses_table(tmp_path / "losses.csv")] == list(range(num_rows))


@pytest.fixture
def shown(monkeypatch, trained):
    """Runs a task's function without Prefect; gives the stages that it ran and the artifacts that it made."""
    trained()
    Path("build/metrics.json").write_text('{"fd": 1.0}')
    Path("build/samples/grid.png").write_bytes(b"picture")
    Path("build/losses.csv").write_text("step,loss\n2,0.5\n")

    def run(name, has_linked_run=False):
        module = import_module(f"tasks.{name}")
        stages, artifacts = [], {}

        def run_stage(stage, variables=None):
            stages.append(stage)
            assert variables == ({"CARDS": "3"} if hasattr(module, "gpu_slots") else None)
            return SimpleNamespace(has_linked_run=has_linked_run)

        monkeypatch.setattr(module, "run_stage", run_stage)
        if hasattr(module, "gpu_slots"):
            monkeypatch.setattr(module, "read_params", lambda: PARAMS)
            monkeypatch.setattr(module, "gpu_slots", lambda number: nullcontext({"CARDS": str(number)}))
        if hasattr(module, "get_run_logger"):
            monkeypatch.setattr(module, "get_run_logger", lambda: LOGGER)
        for place in (module, run_page):
            for kind in ("link", "markdown", "table"):
                maker = f"create_{kind}_artifact"
                if hasattr(place, maker):
                    monkeypatch.setattr(
                        place, maker, lambda *content, key, **more: artifacts.update({key: content or more["link"]})
                    )
        task = getattr(module, name)
        assert task.name == name
        task.fn()
        return stages, artifacts

    return run


@pytest.mark.parametrize("name", STAGES)
def test_each_task_runs_its_own_stage(shown, name):
    assert shown(name)[0] == [name]


def test_artifacts_show_run_losses_samples_and_metrics(shown):
    assert shown("train")[1] == {
        "mlflow-run": "http://127.0.0.1:5000/#/experiments/1/runs/abc",
        "losses": ([{"step": 2, "loss": 0.5}],),
    }
    assert shown("sample")[1] == {"samples": (embedded(Path("build/samples/grid.png")),)}
    assert shown("evaluate")[1] == {"metrics": ([{"metric": "fd", "value": 1.0}],)}


def test_a_run_that_was_linked_while_it_trained_is_not_linked_again(shown):
    assert list(shown("train", has_linked_run=True)[1]) == ["losses"]


def test_without_tracking_no_link_is_made(shown, trained):
    trained(run_id="", experiment_id="")
    assert list(shown("train")[1]) == ["losses"]


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_what_cannot_be_shown_fails_no_task(shown, name, caplog):
    for path in ("build/metrics.json", "build/samples/grid.png", "build/losses.csv", "build/model/run.json"):
        Path(path).unlink()
    assert shown(name) == ([name], {})
    assert all("the run page does not show" in message for message in caplog.messages) and caplog.messages


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
    state = SimpleNamespace(data=StageFailedError(f"stage download failed: {said}"))
    assert network_failed(None, None, state) is expected
