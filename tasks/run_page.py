"""What the run page shows of a stage: while it runs, and when it has ended. It never holds a stage up or fails it."""

import base64
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from tasks.output import Progress, Said, progress_of

UPDATE_SECONDS = 2.0
"""The least time between two updates of the page."""

_CLOSING_SECONDS = 10.0
"""How long the end of a stage may wait for its page."""

PAGES_VARIABLE = "DDPM_MLFLOW_PAGES"
"""How browsers call MLflow, where they call it otherwise than this machine's programs do."""

LOCAL_MLFLOW = "http://127.0.0.1:5000"
"""Where `make mlflow` serves the local runs."""

# What tracking.runs and stages.training.previews say.
_MLFLOW_RUN = re.compile(r"[a-z]+: MLflow run (?P<run>\w+) of experiment (?P<experiment>\w+)")
_PREVIEW = re.compile(r"train: samples of step (?P<step>\d+) in (?P<path>\S+\.png)")


class StagePage:
    """Shows on the run page what a running stage says of its progress, its MLflow run and its samples."""

    def __init__(self, stage: str, publisher: "Publisher") -> None:
        self.has_linked_run = False
        self._stage, self._publisher = stage, publisher
        self._bar: UUID | None = None

    def take(self, said: Said) -> None:
        """Take in what the stage has said, if the page shows it."""
        if progress := progress_of(said.text):
            self._publisher.put("its progress", lambda: self._show_progress(progress))
        elif run := _MLFLOW_RUN.fullmatch(said.text):
            self._publisher.put("its MLflow run", lambda: self._link_run(run["run"], run["experiment"]))
        elif preview := _PREVIEW.fullmatch(said.text):
            self._publisher.put("its samples", lambda: show_preview(Path(preview["path"]), preview["step"]))

    def _link_run(self, run_id: str, experiment_id: str) -> None:
        show_mlflow_run(run_id, experiment_id)
        self.has_linked_run = True

    def _show_progress(self, progress: Progress) -> None:
        if self._bar is None:
            made = create_progress_artifact(progress.percent, f"progress-{self._stage}", progress.description)
            assert isinstance(made, UUID)
            self._bar = made
        else:
            update_progress_artifact(self._bar, progress.percent, progress.description)


class Publisher:
    """Does what it is given in a thread of its own, now and then, the latest of each kind alone."""

    def __init__(self, logger: "logging.Logger | logging.LoggerAdapter[Any]") -> None:
        self._logger = logger
        self._waiting: dict[str, Callable[[], object]] = {}
        self._failed: set[str] = set()
        self._changed = threading.Condition()
        self._is_closing = False
        # The thread's artifacts are those of the task that runs here.
        self._thread = threading.Thread(target=copy_context().run, args=(self._work,), name="run-page", daemon=True)
        self._thread.start()

    def put(self, what: str, action: Callable[[], object]) -> None:
        """Have an action done soon, in the place of one of the same kind that still waits."""
        with self._changed:
            self._waiting[what] = action
            self._changed.notify()

    def close(self) -> None:
        """Have done what still waits; a server that does not answer is not waited for."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(_CLOSING_SECONDS)
        if self._thread.is_alive():
            self._logger.warning("the Prefect server does not answer: the run page may miss the last state of a stage")

    def _work(self) -> None:
        while actions := self._next():
            for what, action in actions.items():
                if (error := attempt(action)) and what not in self._failed:
                    self._failed.add(what)  # it is said once
                    self._logger.warning(cannot_show(what, error))
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing, UPDATE_SECONDS)

    def _next(self) -> dict[str, Callable[[], object]]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            actions, self._waiting = self._waiting, {}
            return actions


@contextmanager
def stage_page(stage: str, logger: "logging.Logger | logging.LoggerAdapter[Any]") -> Iterator[StagePage]:
    """The page of a running stage, brought up to date to the end of the block."""
    publisher = Publisher(logger)
    try:
        yield StagePage(stage, publisher)
    finally:
        publisher.close()


def attempt(action: Callable[[], object]) -> Exception | None:
    """Do what a server or a file may refuse; give the error if it did."""
    try:
        action()
    except Exception as error:
        return error
    return None


def cannot_show(what: str, error: Exception) -> str:
    """What the log says of an artifact that could not be made."""
    return f"the run page does not show {what}: {type(error).__name__}: {error}"


def show(what: str, action: Callable[[], object], logger: "logging.Logger | logging.LoggerAdapter[Any]") -> None:
    """Put on the run page what an ended stage has made, if the server takes it."""
    if error := attempt(action):
        logger.warning(cannot_show(what, error))


def show_mlflow_run(run_id: str, experiment_id: str) -> None:
    """A link to the page of an MLflow run."""
    link = f"{mlflow_address()}/#/experiments/{experiment_id}/runs/{run_id}"
    description = None if tracking_server() else "`make mlflow` serves it"
    create_link_artifact(link=link, link_text="MLflow run", key="mlflow-run", description=description)


def show_preview(path: Path, step: str) -> None:
    """Samples drawn during the training, in the place of those before."""
    text = f"Step {int(step):,}\n\n{embedded(path)}"
    create_markdown_artifact(text, key="samples-in-training", description="Samples of the averaged weights so far")


def mlflow_address() -> str:
    """Where people find MLflow's pages: on the tracking server, or where `make mlflow` serves the local runs."""
    return (os.environ.get(PAGES_VARIABLE) or tracking_server() or LOCAL_MLFLOW).rstrip("/")


def tracking_server() -> str | None:
    """The address of the MLflow server that runs are recorded on, if there is one."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    return address if address.startswith("http") else None


def embedded(picture: Path) -> str:
    """Markdown that holds the picture itself: the page needs no access to the file."""
    return f"![samples](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"
