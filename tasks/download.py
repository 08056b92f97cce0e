"""Fetch and verify the raw dataset."""

from typing import Any

from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun

from tasks.stage import StageFailedError, run_stage

NETWORK_FAILURE = "cannot be downloaded"
"""What the stage says where another try may help."""


def network_failed(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether to try again: a wrong path, a refusal (404) and wrong bytes stay wrong."""
    return isinstance(state.data, StageFailedError) and NETWORK_FAILURE in str(state.data)


@task(name="download", retries=2, retry_delay_seconds=[5, 20], retry_condition_fn=network_failed)
def download() -> None:
    """Fetch and verify the raw dataset. The network is here, and so are the retries."""
    run_stage("download")
