"""Extract the features of real images."""

from prefect import task

from contract.params import read_params
from tasks.gpus import hold_slots
from tasks.stage import run_stage


@task(name="reference")
def reference() -> None:
    """Extract the features of real images, which samples will be compared with."""
    with hold_slots(read_params().reference.num_processes) as gpus:
        run_stage("reference", gpus)
