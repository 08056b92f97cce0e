"""Set up what the service needs on a Prefect server: the work pool, the deployments, the watch over runs.

`python -m flows.service.provision` makes it on the server that PREFECT_API_URL names, and can be run again at any time.
"""

import os
import subprocess
import sys
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from contract.errors import FlowersError
from flows.service.up import POOL
from tasks.gpus import read_num_slots

HEARTBEAT_SECONDS = 30
"""How often a run says that it is alive; Prefect takes no less. prefect.toml says the same for runs by hand."""

SILENCE_SECONDS = 100
"""After this long without a word a run has died with its worker."""


def main() -> None:
    """`python -m flows.service.provision`."""
    if not os.environ.get("PREFECT_API_URL"):
        sys.exit("provision: PREFECT_API_URL must name the Prefect server, such as http://127.0.0.1:4200/api")
    try:
        read_num_slots(os.environ)  # here, so that the service does not start with it
    except FlowersError as error:
        sys.exit(f"provision: {error}")
    with get_client(sync_client=True) as client:
        put_work_pool(client, work_pool())
        put_automation(client, crash_of_silent_runs())
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    sys.exit(subprocess.run(deploy, check=False).returncode)


def work_pool() -> WorkPoolCreate:
    """Runs are child processes of their worker, wherever that is, and say that they are alive."""
    template = ProcessWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    variables["env"]["default"] = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    return WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template)


def put_work_pool(client: SyncPrefectClient, pool: WorkPoolCreate) -> None:
    """Make the pool, or bring the one of its name up to date; its limit, and whether it is paused, are people's."""
    try:
        client.create_work_pool(pool)
    except ObjectAlreadyExists:
        client.update_work_pool(pool.name, WorkPoolUpdate(base_job_template=pool.base_job_template))


def crash_of_silent_runs() -> AutomationCore:
    """Prefect's pattern for runs whose worker died: no heartbeat and no end for so long means Crashed."""
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    heartbeat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name="A run that has gone silent has crashed",
        description="made by flows/service/provision.py",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            after={heartbeat},
            expect={heartbeat, *ends},
            threshold=1,
            within=timedelta(seconds=SILENCE_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                message=f"Not heard of for {SILENCE_SECONDS} seconds: its worker has died.",
                force=False,
            )
        ],
    )


def put_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Make the automation, or bring the one of its name up to date."""
    existing = client.read_automations_by_name(automation.name)
    if existing:
        client.update_automation(existing[0].id, automation)
    else:
        client.create_automation(automation)


if __name__ == "__main__":
    main()
