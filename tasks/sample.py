"""Draw images with the trained model."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from contract.params import read_params
from tasks.gpu import gpu_slots
from tasks.run_page import embedded, show
from tasks.stage import run_stage

GRID = Path("build/samples/grid.png")


@task(name="sample")
def sample() -> None:
    """Draw images, and show their grid on the run page."""
    with gpu_slots(read_params().sample.num_processes) as cards:
        run_stage("sample", cards)
    show("the samples", show_samples, get_run_logger())


def show_samples() -> None:
    """The grid of samples."""
    create_markdown_artifact(embedded(GRID), key="samples", description="Samples of the trained model")
