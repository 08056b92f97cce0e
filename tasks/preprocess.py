"""Crop and resize the raw images into the prepared dataset."""

from prefect import task

from tasks.stage import run_stage


@task(name="preprocess")
def preprocess() -> None:
    """Crop and resize the raw images into the prepared dataset."""
    run_stage("preprocess")
