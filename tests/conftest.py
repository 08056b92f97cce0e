"""Set-up of every test: each call into `ddpm` is checked against its annotations, shapes included."""

import signal
import threading
from collections.abc import Iterator

import jaxtyping
import pytest
import torch

# It runs without the hook below, which no compiler gets through: `make gpu`, or see its docstring.
collect_ignore = ["test_gpu.py"]

pytest_plugins = ["tests.small_experiment"]

# The hook changes modules as they are imported, so it must stand before the first test module imports ddpm.
jaxtyping.install_import_hook("ddpm", "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; left out unless asked for with -m slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; run it with -m slow"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    # Networks of a few thousand weights lose more to threads than they gain.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children may be interrupted, even where the tests run in the background of a script, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Lets wrong arguments through to the library's own errors, which its users see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def slow_disk(monkeypatch):
    """Takes a checkpoint that is written beside the training no sooner than somebody waits for it."""
    from ddpm.checkpoint import Snapshot, save_file
    from ddpm.checkpoint_writer import CheckpointWriter

    def take(*arguments):
        awaited.clear()
        return taken(*arguments)

    def wait(writer):
        awaited.set()
        waited(writer)

    def write(*arguments):
        assert awaited.wait(60.0), "nobody waits for the checkpoint"
        save_file(*arguments)

    awaited, taken, waited = threading.Event(), Snapshot.capture, CheckpointWriter.wait
    monkeypatch.setattr(Snapshot, "capture", take)
    monkeypatch.setattr(CheckpointWriter, "wait", wait)
    monkeypatch.setattr("ddpm.checkpoint.save_file", write)
