"""Draw images with the trained model."""

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from contract.params import read_params
from contract.paths import GRID
from tasks.gpus import hold_slots
from tasks.run_page import embed, show
from tasks.stage import run_stage


@task(name="sample")
def sample() -> None:
    """Draw images, and show their grid on the run page."""
    with hold_slots(read_params().sample.num_processes) as gpus:
        run_stage("sample", gpus)
    show("the samples", show_samples, get_run_logger())


def show_samples() -> None:
    """Show the grid of samples."""
    create_markdown_artifact(embed(GRID), key="samples", description="Samples of the trained model")
