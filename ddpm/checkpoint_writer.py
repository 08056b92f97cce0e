"""Writes checkpoints in the background; the training stands still only while its state is copied."""

import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ddpm.checkpoint import Snapshot
from ddpm.devices import fits_on
from ddpm.training_state import TrainingState


class CheckpointWriter:
    """A thread that writes the checkpoints of one training, one after the other.

    The end of its context waits for the checkpoint under way. If the block has raised an error, that error is passed
    on, and a failure to write becomes a warning. The arguments are those of `ddpm.checkpoint.save_checkpoint`.
    """

    def __init__(self, folder: Path, experiment: Mapping[str, Any], keep: int, keep_every: int | None = None) -> None:
        self._folder = folder
        self._experiment = experiment
        self._kept = keep, keep_every
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._under_way: Future[None] | None = None
        self._stream: torch.cuda.Stream | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        with self._thread:
            try:
                self.wait()
            except Exception as failure:
                if error is None:
                    raise
                warnings.warn(f"the last checkpoint could not be written: {failure}", RuntimeWarning, stacklevel=2)

    def save(self, state: TrainingState, notes: Mapping[str, Any]) -> None:
        """Wait for the previous checkpoint, copy `state`, and start to write the copy.

        Raises:
            Exception: the previous checkpoint could not be written; see `wait`.
        """
        self.wait()
        snapshot = Snapshot.capture(state, self._experiment, notes)
        device = next(iter(snapshot.tensors.values())).device
        snapshot = replace(snapshot, tensors=_copy(snapshot.tensors, device))
        if device.type == "cuda":
            # The thread's stream waits for the copies; the training's own stream waits for nothing.
            self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._under_way = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Wait until the checkpoint under way, if there is one, is complete.

        Raises:
            Exception: any error of `ddpm.checkpoint.save_checkpoint`, such as OSError for a full disk.
        """
        if self._under_way is None:
            return
        failure = self._under_way.exception()
        self._under_way = None  # only now, so that an interrupted wait can be repeated
        if failure is not None:
            raise failure

    def _write(self, snapshot: Snapshot) -> None:
        with torch.cuda.stream(self._stream):
            # Taken out of the copies one by one, so that the GPU's memory is free before anything is written.
            tensors = {name: snapshot.tensors.pop(name).cpu() for name in list(snapshot.tensors)}
        replace(snapshot, tensors=tensors).write(self._folder, *self._kept)


def _copy(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copy tensors: on the device if the next step leaves room for them, otherwise to the CPU."""
    if fits_on(device, sum(tensor.nbytes for tensor in tensors.values())):
        try:
            return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        except torch.OutOfMemoryError:
            pass  # the copies made so far are freed when this block is left
    # Copied in the same order of memory first: changing the order on the GPU would take memory there.
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
