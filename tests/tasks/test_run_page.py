"""The run page of a running stage, which shows it and never can fail or hold up the stage."""

import logging
import threading
import time
from uuid import uuid4

import pytest

from contract.events import Progress, RunOpened
from tasks import run_page
from tasks.run_page import show_stage

LOGGER = logging.getLogger("test")
RUN = RunOpened("0a1b", "7")


def progress(percent):
    return Progress(f"train: {percent}/100", float(percent))


@pytest.fixture
def artifacts(monkeypatch):
    """Artifacts for the Prefect server, in order."""
    made = []
    monkeypatch.setattr(run_page, "create_progress_artifact", lambda percent, *_: made.append(percent) or uuid4())
    monkeypatch.setattr(run_page, "update_progress_artifact", lambda _, percent, *_more: made.append(percent))
    monkeypatch.setattr(run_page, "create_link_artifact", lambda link, key, **_: made.append((key, link)))
    monkeypatch.setattr(run_page, "create_markdown_artifact", lambda text, key, **_: made.append((key, text)))
    return made


@pytest.mark.parametrize(
    ("uri", "base"),
    [
        ("", "http://127.0.0.1:5000"),
        ("sqlite:///elsewhere.db", "http://127.0.0.1:5000"),
        ("https://server/mlflow/", "https://server/mlflow"),
    ],
)
def test_the_link_leads_to_the_page_of_the_run(artifacts, monkeypatch, uri, base):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with show_stage("train", LOGGER) as page:
        page.take(RUN)
    assert page.has_linked_run
    assert artifacts == [("mlflow-run", f"{base}/#/experiments/7/runs/0a1b")]


def test_only_the_latest_of_each_kind_is_shown_and_the_last_always(artifacts):
    with show_stage("train", LOGGER) as page:
        page.take(Progress("train: 12 images", None))
        for percent in range(10, 100):
            page.take(progress(percent))
    assert artifacts[-1] == 99.0 and len(artifacts) < 45


def test_a_server_that_refuses_fails_nothing_and_is_logged_once(artifacts, log, monkeypatch):
    refused = threading.Semaphore(0)

    def refuse(*_):
        refused.release()
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(run_page, "UPDATE_SECONDS", 0.0)
    monkeypatch.setattr(run_page, "create_progress_artifact", refuse)
    with show_stage("train", LOGGER) as page:
        for percent in (10, 20):
            page.take(progress(percent))
            assert refused.acquire(timeout=30.0)
        page.take(RUN)
    assert [record.getMessage() for record in log] == [
        "the run page does not show its progress: ConnectionError: the server is gone"
    ]
    assert [kind for kind, *_ in artifacts] == ["mlflow-run"]


def test_a_server_that_does_not_answer_holds_nothing_up(artifacts, log, monkeypatch):
    answers = threading.Event()
    monkeypatch.setattr(run_page, "CLOSING_SECONDS", 0.1)
    monkeypatch.setattr(run_page, "create_progress_artifact", lambda *_: answers.wait(60) and uuid4())
    with show_stage("train", LOGGER) as page:
        page.take(progress(10))
        time.sleep(0.1)
    assert not answers.is_set()
    answers.set()
    assert "does not answer" in log[0].getMessage()
