"""What the run page shows of a running stage, and that nothing of it can fail or hold up the stage."""

import base64
import logging
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest
from tasks.output import Said

from tasks import run_page
from tasks.run_page import StagePage, embedded, mlflow_address, show, show_mlflow_run, show_preview, stage_page

BAR = "train:  {percent}%|███       | {percent}/100 [00:10<00:10, 1.20 images/s]"


@pytest.fixture(autouse=True)
def local(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def artifacts(monkeypatch):
    """What would go to the Prefect server, in its order."""
    made = []
    bar = uuid4()

    def create_progress(progress, key, description):
        made.append((key, progress, description))
        return bar

    def update_progress(artifact_id, progress, description):
        assert artifact_id == bar
        made.append(("update", progress, description))

    monkeypatch.setattr(run_page, "create_progress_artifact", create_progress)
    monkeypatch.setattr(run_page, "update_progress_artifact", update_progress)
    monkeypatch.setattr(run_page, "create_link_artifact", lambda link, key, **_: made.append((key, link)))
    monkeypatch.setattr(run_page, "create_markdown_artifact", lambda text, key, **_: made.append((key, text)))
    return made


class AtOnce:
    """Does everything as soon as it is given."""

    def put(self, _what, action):
        action()


def line(text):
    return Said(text, is_passing=False)


def state(percent):
    return Said(BAR.format(percent=percent), is_passing=True)


def test_the_bar_of_a_stage_becomes_one_progress_that_moves(artifacts):
    page = StagePage("train", AtOnce())
    for said in (line("train: 8 images"), state(25), state(75), line(BAR.format(percent=100))):
        page.take(said)
    assert [(kind, percent) for kind, percent, _ in artifacts] == [
        ("progress-train", 25.0), ("update", 75.0), ("update", 100.0),
    ]  # fmt: skip
    assert artifacts[0][2] == "train: 25/100 [00:10<00:10, 1.20 images/s]"


def test_the_mlflow_run_is_linked_as_soon_as_it_is_told(artifacts):
    page = StagePage("train", AtOnce())
    page.take(line("train: MLflow run is coming"))
    assert not page.has_linked_run and artifacts == []
    page.take(line("train: MLflow run 0a1b of experiment 7"))
    assert page.has_linked_run
    assert artifacts == [("mlflow-run", "http://127.0.0.1:5000/#/experiments/7/runs/0a1b")]


def test_samples_are_shown_as_they_come(artifacts, tmp_path):
    page = StagePage("train", AtOnce())
    for step in (0, 2500):
        picture = tmp_path / f"step_{step}.png"
        picture.write_bytes(f"picture {step}".encode())
        page.take(line(f"train: samples of step {step} in {picture}"))
    (first, second) = artifacts
    assert first == ("samples-in-training", f"Step 0\n\n{embedded(tmp_path / 'step_0.png')}")
    assert second[0] == "samples-in-training" and second[1].startswith("Step 2,500\n\n![samples](data:image/png")


def test_the_picture_stands_in_the_page_itself(tmp_path):
    content = bytes(range(256))
    (tmp_path / "grid.png").write_bytes(content)
    page = embedded(tmp_path / "grid.png")
    before, _, data = page.partition("base64,")
    assert before == "![samples](data:image/png;" and base64.b64decode(data.removesuffix(")")) == content


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
def test_the_link_leads_to_the_page_of_the_run(artifacts, monkeypatch, uri, base):
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    show_mlflow_run("abc", "1")
    assert mlflow_address() == base
    assert artifacts == [("mlflow-run", f"{base}/#/experiments/1/runs/abc")]


def test_what_stages_say_is_what_the_page_waits_for(artifacts, tmp_path, monkeypatch, capsys):
    # Tasks import no stage, so the words stand twice.
    import numpy as np

    from stages.training.previews import show_samples
    from tracking.runs import NoTracker, _announce

    tracker = NoTracker()
    tracker.run_id, tracker.experiment_id = "0a1b", "7"
    _announce(tracker, "sample")
    show_samples(tracker, np.zeros((8, 8, 3), np.uint8), 250)
    page = StagePage("train", AtOnce())
    for text in capsys.readouterr().out.splitlines():
        page.take(line(text))
    assert [artifact[0] for artifact in artifacts] == ["mlflow-run", "samples-in-training"]


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.WARNING, "test")
    return caplog, logging.getLogger("test")


def test_only_the_latest_of_each_kind_is_published_and_the_last_always(artifacts, logged):
    _, logger = logged
    with stage_page("train", logger) as page:
        for percent in range(10, 100):
            page.take(state(percent))
    assert artifacts[-1][1] == 99.0
    assert len(artifacts) <= 5, "every couple of seconds, and once in the end"


def test_a_server_that_refuses_fails_nothing_and_is_told_once(artifacts, logged, monkeypatch):
    caplog, logger = logged

    def refuse(*_, **__):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(run_page, "UPDATE_SECONDS", 0.0)
    monkeypatch.setattr(run_page, "create_progress_artifact", refuse)
    with stage_page("train", logger) as page:
        for percent in (10, 20, 30):
            page.take(state(percent))
            time.sleep(0.05)
        page.take(line("train: MLflow run 0a1b of experiment 7"))
    assert caplog.messages == ["the run page does not show its progress: ConnectionError: the server is gone"]
    assert [kind for kind, *_ in artifacts] == ["mlflow-run"]


def test_a_server_that_does_not_answer_holds_nothing_up(artifacts, logged, monkeypatch):
    caplog, logger = logged
    answers = threading.Event()
    monkeypatch.setattr(run_page, "_CLOSING_SECONDS", 0.1)
    monkeypatch.setattr(run_page, "create_progress_artifact", lambda *_: answers.wait(30))
    with stage_page("train", logger) as page:
        for percent in range(10, 100):
            page.take(state(percent))
    answers.set()
    assert caplog.messages == ["the Prefect server does not answer: the run page may miss the last state of a stage"]


def test_a_preview_that_is_gone_fails_nothing(artifacts, logged):
    caplog, logger = logged
    with stage_page("train", logger) as page:
        page.take(line("train: samples of step 3 in build/previews/gone.png"))
    assert len(caplog.messages) == 1 and "gone.png" in caplog.messages[0]


def test_an_ended_stage_shows_what_can_be_shown(logged, tmp_path, artifacts):
    caplog, logger = logged
    show("the samples", lambda: show_preview(Path("missing.png"), "1"), logger)
    assert caplog.messages[0].startswith("the run page does not show the samples: FileNotFoundError: ")
    (tmp_path / "there.png").write_bytes(b"picture")
    show("the samples", lambda: show_preview(tmp_path / "there.png", "1"), logger)
    assert len(artifacts) == 1
