"""Set up what the service needs on a Prefect server: the work pool, the deployments, the watch over runs.

`flowers set-up` does it on the server that PREFECT_API_URL names, and can be run again at any time; `flowers up` runs
that command.
"""

import os
import subprocess
import sys
from datetime import timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists
from prefect.workers.process import ProcessWorker

from contract.errors import FlowersError
from flows.service import POOL
from flows.service.prefect_server import require_prefect_server
from tasks.gpus import read_num_slots

HEARTBEAT_SECONDS = 30
"""Interval of a run's heartbeats, the shortest that Prefect takes; prefect.toml says the same for runs by hand."""

SILENCE_SECONDS = 100
"""Time without a heartbeat after which a run counts as dead, together with its worker."""


def provision() -> None:
    """Make or update pool, automation and deployments on the server that PREFECT_API_URL names.

    Raises:
        FlowersError: the variable is not set, the server does not answer, or Prefect refuses the deployments.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise FlowersError("PREFECT_API_URL must name the Prefect server, such as http://127.0.0.1:4200/api")
    require_prefect_server()
    read_num_slots()  # a wrong number is an error now, not in the first run
    pool, automation = describe_work_pool(), describe_crash_watch()
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(pool)
        except ObjectAlreadyExists:  # keep the limit and the pause that users have set
            client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=pool.base_job_template))
        if existing := client.read_automations_by_name(automation.name):
            client.update_automation(existing[0].id, automation)
        else:
            client.create_automation(automation)
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    if status := subprocess.run(deploy, check=False).returncode:
        raise FlowersError(f"`prefect deploy --all` ended with {status}, as it says above")


def describe_work_pool() -> WorkPoolCreate:
    """Return the pool: runs are child processes of their worker and send heartbeats."""
    template = ProcessWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    variables["env"]["default"] = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    return WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template)


def describe_crash_watch() -> AutomationCore:
    """Return an automation that marks a run as crashed when its heartbeats stop without an end.

    It is the one that Prefect's documentation gives for runs with a dead worker.
    """
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
                message=f"No heartbeat for {SILENCE_SECONDS} seconds: its worker has died.",
                force=False,
            )
        ],
    )
