"""Fetch and verify the raw dataset."""

from prefect import task

from tasks.stage import run_stage


@task(name="download", retries=2, retry_delay_seconds=[5, 20])
def download() -> None:
    """Fetch and verify the raw dataset. The network is here, and so are the retries."""
    run_stage("download")
