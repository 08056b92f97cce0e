"""The run page of a stage, while it runs and when it has ended; it never holds a stage up or fails it."""

import base64
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import TypeAlias
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from contract.addresses import mlflow_address, tracking_server
from contract.events import Event, PictureWritten, Progress, RunOpened

UPDATE_SECONDS = 2.0
"""Minimum time between two updates of the page."""

CLOSING_SECONDS = 10.0
"""Maximum time that the end of a stage waits for its page."""

Log: TypeAlias = "logging.Logger | logging.LoggerAdapter[logging.Logger]"


class StagePage:
    """Part of the run page about a running stage: its progress, its MLflow run and its samples."""

    def __init__(self, stage: str, publisher: "Publisher") -> None:
        self.has_linked_run = False
        self._stage, self._publisher = stage, publisher
        self._bar: UUID | None = None

    def take(self, event: Event) -> None:
        """Show an event that the page has a place for."""
        match event:
            case Progress(text, percent) if percent is not None:
                self._publisher.put("its progress", lambda: self._show_progress(percent, text))
            case RunOpened(run_id, experiment_id):
                self._publisher.put("its MLflow run", lambda: self._link_run(run_id, experiment_id))
            case PictureWritten(path, step):
                self._publisher.put("its samples", lambda: show_preview(Path(path), step))

    def _link_run(self, run_id: str, experiment_id: str) -> None:
        show_mlflow_run(run_id, experiment_id)
        self.has_linked_run = True

    def _show_progress(self, percent: float, text: str) -> None:
        if self._bar is None:
            made = create_progress_artifact(percent, f"progress-{self._stage}", text)
            assert isinstance(made, UUID)
            self._bar = made
        else:
            update_progress_artifact(self._bar, percent, text)


class Publisher:
    """A thread that runs actions at a limited rate, and of each kind only the latest."""

    def __init__(self, logger: Log) -> None:
        self._logger = logger
        self._waiting: dict[str, Callable[[], object]] = {}
        self._failed: set[str] = set()
        self._changed = threading.Condition()
        self._is_closing = False
        # With the context of the task, so that its artifacts are the task's.
        self._thread = threading.Thread(target=copy_context().run, args=(self._work,), name="run-page", daemon=True)
        self._thread.start()

    def put(self, kind: str, action: Callable[[], object]) -> None:
        """Run an action soon, instead of one of the same kind that still waits."""
        with self._changed:
            self._waiting[kind] = action
            self._changed.notify()

    def close(self) -> None:
        """Run what still waits; give up a server that does not answer."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            self._logger.warning("the Prefect server does not answer: the run page may miss the last state of a stage")

    def _work(self) -> None:
        while actions := self._next():
            for kind, action in actions.items():
                if not show(kind, action, None if kind in self._failed else self._logger):
                    self._failed.add(kind)  # later ones are tried, but not logged
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing, UPDATE_SECONDS)

    def _next(self) -> dict[str, Callable[[], object]]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            actions, self._waiting = self._waiting, {}
            return actions


@contextmanager
def show_stage(stage: str, logger: Log) -> Iterator[StagePage]:
    """Show a stage on the run page inside the block, and its last state at the end."""
    with closing(Publisher(logger)) as publisher:
        yield StagePage(stage, publisher)


def show(what: str, action: Callable[[], object], logger: "Log | None") -> bool:
    """Put something on the run page; return whether the server took it, and log it if not."""
    try:
        action()
    except Exception as error:
        if logger:
            logger.warning(f"the run page does not show {what}: {type(error).__name__}: {error}")
        return False
    return True


def show_mlflow_run(run_id: str, experiment_id: str) -> None:
    """Link to the page of an MLflow run."""
    link = f"{mlflow_address()}/#/experiments/{experiment_id}/runs/{run_id}"
    description = None if tracking_server() else "`make mlflow` serves it"
    create_link_artifact(link=link, link_text="MLflow run", key="mlflow-run", description=description)


def show_preview(path: Path, step: int) -> None:
    """Show samples drawn during the training, instead of those before."""
    text = f"Step {step:,}\n\n{embed(path)}"
    create_markdown_artifact(text, key="samples-in-training", description="Samples of the averaged weights so far")


def embed(picture: Path) -> str:
    """Return markdown that holds the picture itself, so that the page needs no access to the file."""
    return f"![samples](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"
