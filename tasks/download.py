"""Fetch and verify the raw dataset."""

from typing import Any

from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun

from tasks.stage import StageFailedError, run_stage


def may_help(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether another try may help: a wrong path, a refusal (404) and wrong bytes stay wrong."""
    return isinstance(state.data, StageFailedError) and state.data.is_passing


@task(name="download", retries=2, retry_delay_seconds=[5, 20], retry_condition_fn=may_help)
def download() -> None:
    """Fetch and verify the raw dataset. The network is here, and so are the retries."""
    run_stage("download")
