"""Settings that the service makes on a Prefect server."""

import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

from flows.service.provision import (
    HEARTBEAT_SECONDS,
    SILENCE_SECONDS,
    ProvisionError,
    describe_crash_watch,
    describe_work_pool,
    num_gpu_slots,
)


def test_as_many_slots_as_devices(driver):
    driver("GPU 0: NVIDIA H100 (UUID: GPU-1)", "GPU 1: NVIDIA H100 (UUID: GPU-2)")
    assert num_gpu_slots({}) == 2


def test_parts_of_a_device_are_not_devices(driver):
    driver("GPU 0: NVIDIA H100 (UUID: GPU-1)", "  MIG 1g.10gb Device 0: (UUID: MIG-1)")
    assert num_gpu_slots({}) == 1


def test_one_slot_without_a_device(driver, monkeypatch, tmp_path):
    driver("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.")
    assert num_gpu_slots({}) == 1
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert num_gpu_slots({}) == 1


def test_the_variable_decides(driver):
    driver("GPU 0: NVIDIA H100 (UUID: GPU-1)")
    assert num_gpu_slots({"DDPM_GPU_SLOTS": "3"}) == 3


@pytest.mark.parametrize("wanted", ["0", "-1", "two", "1.5"])
def test_a_variable_that_is_no_number_is_an_error(wanted):
    with pytest.raises(ProvisionError, match=f"DDPM_GPU_SLOTS must be a number from 1, got '{wanted}'"):
        num_gpu_slots({"DDPM_GPU_SLOTS": wanted})


def test_runs_send_heartbeats_as_often_as_the_automation_expects():
    """Two beats may be lost before a run counts as dead."""
    assert SILENCE_SECONDS > 3 * HEARTBEAT_SECONDS
    assert describe_crash_watch().trigger.within.total_seconds() == SILENCE_SECONDS
    variables = describe_work_pool().base_job_template["variables"]["properties"]
    assert variables["env"]["default"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    assert PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() == HEARTBEAT_SECONDS  # prefect.toml
