"""Time variants by device events, in turn in one process."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]


class Stopwatch:
    """Stopwatch of the device's own time between `start` and `stop`; on a CPU, of the clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._events = [
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2 if self._is_cuda else 0)
        ]
        self._seconds = [0.0, 0.0]

    def start(self) -> None:
        """Begin, without waiting for the device."""
        self._mark(0)

    def stop(self) -> None:
        """End, without waiting for the device."""
        self._mark(1)

    def seconds(self) -> float:
        """Wait for the device, and return the time between the two."""
        if self._is_cuda:
            torch.cuda.synchronize(self._device)
            milliseconds: float = self._events[0].elapsed_time(self._events[1])
            return milliseconds / 1000.0
        return self._seconds[1] - self._seconds[0]

    def _mark(self, index: int) -> None:
        if self._is_cuda:
            self._events[index].record()
        else:
            self._seconds[index] = time.perf_counter()


def time_in_turn(
    steps: Mapping[str, Step], num_repeats: int, num_rounds: int, device: torch.device
) -> dict[str, float]:
    """Return the median seconds of each warm step, timed in turn so that a drift affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(num_rounds):
        for name, step in steps.items():
            watch = Stopwatch(device)
            watch.start()
            for _ in range(num_repeats):
                step()
            watch.stop()
            seconds[name].append(watch.seconds() / num_repeats)
    return {name: statistics.median(values) for name, values in seconds.items()}
