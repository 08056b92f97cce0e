"""Register the model in MLflow."""

from prefect import task

from tasks.stage import run_stage


@task(name="register")
def register() -> None:
    """Register the model in MLflow."""
    run_stage("register")
