"""A recorded step does what an unrecorded one does: here a tape of operations stands for the CUDA graph.

Like a graph, the tape repeats the same operations on the same memory, and every number that Python handed to them.
What it cannot show is whether a GPU can record them; tests/test_gpu.py shows that.
"""

import dataclasses
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm import train
from ddpm.recording import RecordedFunction
from ddpm.training import may_record
from tests.ddpm.small_training import CONFIG, NUM_STEPS, assert_same_bits, fields, snapshot, start

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """A record of operations with their arguments and results, and its repetition."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.num_replays = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        self.num_replays += 1
        if self.num_replays == 1:
            return  # a graph records without running; the tape has run already
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(tensors_in(result), tensors_in(again), strict=True):
                if old.data_ptr() != new.data_ptr():  # otherwise a view, or written in place
                    old.copy_(new)


def tensors_in(result):
    items = result if isinstance(result, list | tuple) else [result]
    return [item for item in items if isinstance(item, torch.Tensor)]


@pytest.fixture
def tapes(monkeypatch):
    """The tapes on which all steps are recorded."""
    made = []

    def capture(function):
        with Tape() as tape:
            output = function()
        made.append(tape)
        return tape.replay, output

    monkeypatch.setattr("ddpm.recording.capture", capture)
    monkeypatch.setattr("ddpm.training.may_record", lambda *_: True)
    return made


def with_rate_on_the_device(state):
    """Put the learning rate into a tensor, as on a GPU."""
    for group in state.optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]))
    return state


@pytest.mark.parametrize(
    "changes",
    [
        {},  # a changing rate, clipping, an average that warms up
        {"ema_warmup": False, "extra_ema_decays": (0.5, 0.99)},
        {"accumulation_steps": 2, "min_snr_gamma": 5.0},
        {"precision": "bfloat16"},
        {"gradient_checkpointing": True},
    ],
)
def test_recorded_steps_are_the_steps(images, diffusion, tapes, monkeypatch, changes):
    config = dataclasses.replace(CONFIG, **changes)
    recorded = with_rate_on_the_device(start(config))
    events = [fields(event) for event in train(recorded, images, diffusion, config)]
    assert [tape.num_replays for tape in tapes] == [NUM_STEPS - 3]
    monkeypatch.undo()
    plain = with_rate_on_the_device(start(config))
    assert events == [fields(event) for event in train(plain, images, diffusion, config)]
    assert_same_bits(snapshot(recorded), snapshot(plain))


@pytest.mark.usefixtures("tapes")
def test_what_a_step_gave_stays_when_the_next_is_taken(images, diffusion):
    state = with_rate_on_the_device(start())
    losses, read_at_once = [], []
    for event in train(state, images, diffusion, CONFIG):
        losses.append(event.loss)
        read_at_once.append(float(event.loss))
    assert [float(loss) for loss in losses] == read_at_once
    assert len(set(read_at_once)) == NUM_STEPS


def test_what_cannot_be_recorded_goes_on_without_and_says_why_once(monkeypatch):
    def capture(_function):
        raise RuntimeError("not permitted\nand a long trace")

    monkeypatch.setattr("ddpm.recording.capture", capture)
    doubled = RecordedFunction(lambda x: 2 * x, CPU)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [float(doubled(torch.tensor(float(i)))) for i in range(8)]
    assert results == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]
    assert not doubled.is_recorded
    (warning,) = caught
    assert str(warning.message).endswith("cannot be recorded as a CUDA graph and runs without it: not permitted")


@pytest.mark.parametrize(("compilation", "device", "expected"), [
    ("auto", "cuda", True), ("off", "cuda", False), ("default", "cuda", False), ("reduce-overhead", "cuda", False),
    ("auto", "cpu", False),
])  # fmt: skip
def test_steps_are_recorded_on_a_gpu_unless_the_compilation_was_chosen(compilation, device, expected):
    config = dataclasses.replace(CONFIG, compilation=compilation)
    assert may_record(config, torch.device(device)) == expected
