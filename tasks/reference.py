"""Extract the features of real images."""

from prefect import task

from tasks.gpu import gpu_slot
from tasks.stage import run_stage


@task(name="reference")
def reference() -> None:
    """Extract the features of real images, which samples will be compared with."""
    with gpu_slot():
        run_stage("reference")
