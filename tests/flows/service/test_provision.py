"""What the Prefect server is to be told."""

from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

from flows.service.provision import (
    HEARTBEAT_SECONDS,
    SILENCE_SECONDS,
    crash_of_silent_runs,
    work_pool,
)


def test_runs_of_the_pool_and_by_hand_beat_as_often_as_the_automation_expects():
    """Two beats may be lost before a run counts as dead."""
    assert SILENCE_SECONDS > 3 * HEARTBEAT_SECONDS
    assert crash_of_silent_runs().trigger.within.total_seconds() == SILENCE_SECONDS
    variables = work_pool().base_job_template["variables"]["properties"]
    assert variables["env"]["default"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() == HEARTBEAT_SECONDS  # prefect.toml
