"""Checkpoints that are written beside the training, which stands still for a copy of its state alone."""

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
    """Writes the checkpoints of one training in a thread, one after the other.

    Leaving it as a context waits for the checkpoint under way. Where the block has raised, its own error gets out, and
    a failure to write is a warning. The arguments are those of `ddpm.checkpoint.save_checkpoint`.
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
                warnings.warn(f"the last checkpoint could not be written: {failure!r}", RuntimeWarning, stacklevel=2)

    def save(self, state: TrainingState, notes: Mapping[str, Any]) -> None:
        """Copy `state`, once the checkpoint before is written, and have the copy written.

        Raises:
            Exception: the checkpoint before could not be written; see `wait`.
        """
        self.wait()
        snapshot = Snapshot.take(state, self._experiment, notes)
        device = next(iter(snapshot.tensors.values())).device
        snapshot = replace(snapshot, tensors=_copies(snapshot.tensors, device))
        if device.type == "cuda":
            # It goes on when the copies are done, and the training's own stream waits for nothing.
            self._stream = self._stream or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._under_way = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Wait until the checkpoint under way, if there is one, has its name.

        Raises:
            Exception: what `ddpm.checkpoint.save_checkpoint` would have raised, such as OSError where the disk is full.
        """
        if self._under_way is None:
            return
        failure = self._under_way.exception()
        self._under_way = None  # only now: interrupted, one can wait again
        if failure is not None:
            raise failure

    def _write(self, snapshot: Snapshot) -> None:
        with torch.cuda.stream(self._stream):
            # One by one out of the copies: the GPU's memory is free again before anything is written.
            tensors = {name: snapshot.tensors.pop(name).cpu() for name in list(snapshot.tensors)}
        replace(snapshot, tensors=tensors).write(self._folder, *self._kept)


def _copies(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies that no training changes: on the device, where the next step leaves room for them, or else on the CPU."""
    if fits_on(device, sum(tensor.nbytes for tensor in tensors.values())):
        try:
            return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        except torch.OutOfMemoryError:
            pass  # what has been copied is free again when this block is left
    # In the same order of memory first: a change of it on the GPU would take memory there.
    return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
