"""GPU work that is recorded once and then launched as a whole."""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

NUM_WARM_UP_CALLS = 3
"""Calls before the recording, in which compilation, cuDNN's benchmarks and the optimizer's state take place."""

Replay = Callable[[], object]


class RecordedFunction:
    """A function of tensors on a GPU, recorded as a CUDA graph at its fourth call and replayed from then on.

    A replay launches all kernels at once instead of by one Python call each. It reads the memory that the recording
    read, and the tensors of each call are copied there. So the function must do the same work each time on tensors of
    the same shapes, must not wait for the device, and must take everything that changes from tensors.

    If the recording fails, a warning says why, and the function is called as usual.

    Args:
        function: returns one tensor, which the caller may keep.
        device: device of all tensors.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function, self._device = function, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._num_calls = 0
        self._inputs: tuple[Tensor, ...] = ()
        self._output = torch.empty(0)
        self._replay: Replay | None = None

    @property
    def is_recorded(self) -> bool:
        """True once calls are replays of the recording."""
        return self._replay is not None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Call the function, or replay it, and return its result."""
        self._num_calls += 1
        if self._num_calls <= NUM_WARM_UP_CALLS:
            with self._warming_up():
                return self._function(*inputs)
        if self._num_calls == NUM_WARM_UP_CALLS + 1:
            self._record(inputs)
        if self._replay is None:
            return self._function(*inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._replay()
        return self._output.clone()  # the next replay writes there

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(each.clone() for each in inputs)
        try:
            self._replay, self._output = capture(lambda: self._function(*self._inputs))
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"GPU work cannot be recorded as a CUDA graph and runs without it: {reason}", stacklevel=2)

    @contextmanager
    def _warming_up(self) -> Iterator[None]:
        """Run the block on another stream, as CUDA requires before a recording; a CPU has no streams."""
        if self._stream is None:
            yield
            return
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


def capture(function: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """Record `function` as a CUDA graph, without running it.

    Returns:
        A function that runs the recording, and the tensor that each run writes its result to.
    """
    gc.collect()  # tensors in dead cycles, if freed during the recording, would end it
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # Other threads may use the GPU meanwhile, for example to write a checkpoint.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = function()
    finally:
        torch.cuda.set_stream(stream)  # if ending the recording failed, torch leaves its own stream current
    return graph.replay, output
