"""Draw images with the trained model."""

import base64
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact

from tasks.gpu import gpu_slot
from tasks.stage import run_stage

GRID = Path("build/samples/grid.png")


@task(name="sample")
def sample() -> None:
    """Draw images, and show their grid on the run page."""
    with gpu_slot():
        run_stage("sample")
    create_markdown_artifact(embedded(GRID), key="samples", description="Samples of the trained model")


def embedded(picture: Path) -> str:
    """Markdown that holds the picture itself: the page needs no access to the file."""
    return f"![samples](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"
