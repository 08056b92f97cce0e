"""Settings that the service makes on a Prefect server."""

from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

from flows.service.provision import (
    HEARTBEAT_SECONDS,
    SILENCE_SECONDS,
    describe_crash_watch,
    describe_work_pool,
)


def test_runs_send_heartbeats_as_often_as_the_automation_expects():
    """Two beats may be lost before a run counts as dead."""
    assert SILENCE_SECONDS > 3 * HEARTBEAT_SECONDS
    assert describe_crash_watch().trigger.within.total_seconds() == SILENCE_SECONDS
    variables = describe_work_pool().base_job_template["variables"]["properties"]
    assert variables["env"]["default"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() == HEARTBEAT_SECONDS  # prefect.toml
