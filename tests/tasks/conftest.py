"""What the tests of tasks share."""

import pytest


@pytest.fixture
def two_cards(driver):
    """A machine with two cards."""
    driver("GPU 0: NVIDIA H100 (UUID: GPU-rose)", "GPU 1: NVIDIA H100 (UUID: GPU-tulip)")
