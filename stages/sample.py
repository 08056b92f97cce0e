"""Draw images with the trained model: the arrays, a grid of them, and the reverse process as animation and strip."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd

from contract import paths
from contract.documents import read_result
from contract.errors import StageError
from contract.params import Params
from contract.sections import SampleParams
from ddpm.classes import ImageClass, labels_of
from ddpm.devices import prepare_best_device
from ddpm.distributed import is_first
from ddpm.files import atomic_path, file_digest
from ddpm.images import sample_grid
from ddpm.published import PublishedModel, load_model
from stages.runtime.outputs import write_json, write_table
from stages.runtime.reporting import say
from stages.runtime.runner import run_stage
from stages.sampling.drawing import draw_interpolation, draw_samples
from stages.sampling.pictures import write_animation, write_grid, write_rows, write_strip
from tracking.runs import open_run, read_run_id


def main(params: Params) -> None:
    """Draw with build/model; write build/samples."""
    sample, device = params.sample, prepare_best_device()
    model = load_model(paths.MODEL, sample.weights, device)
    classes, trained_on = choose_classes(model, sample), read_result(paths.TRAINED_ON)
    with open_run(params, "sample", read_run_id(paths.MODEL_RUN)) as tracker:
        pixels, frames = draw_samples(model, sample, device)
        if not is_first():
            return
        with atomic_path(paths.SAMPLES / "samples.npy") as temporary:
            np.save(temporary, pixels.permute(0, 2, 3, 1).numpy())
        names = [each.name for each in classes]
        grid = sample_grid(pixels[: sample.num_grid_images], names)
        write_grid(grid, model.image_size, names, paths.GRID)
        write_animation(frames, paths.REVERSE_PROCESS)
        write_strip(frames, names, paths.REVERSE_PROCESS_STRIP)
        files = [paths.GRID, paths.REVERSE_PROCESS, paths.REVERSE_PROCESS_STRIP]
        if classes:
            write_classes(classes, len(pixels))
            files.append(paths.SAMPLES_CLASSES)
        if sample.num_interpolation_images:
            row = draw_interpolation(model, sample, device)[None]
            row_names = [names[sample.interpolation_ends[0] % len(names)]] if names else []
            write_rows(row, row_names, paths.INTERPOLATION)
            files.append(paths.INTERPOLATION)
        write_record(sample, tracker.run_id, trained_on)
        tracker.record_image("final_samples", grid)
        for path in files:
            tracker.record_file(path, "samples")
    say("sample", f"{len(pixels)} images by {sample.sampler} in {sample.num_sampling_steps} steps")


def choose_classes(model: PublishedModel, params: SampleParams) -> list[ImageClass]:
    """Return the classes of the images, taken in turn; none, if the model knows no classes.

    Raises:
        StageError: the model cannot draw these classes, or not with this guidance.
    """
    try:
        model.bind_classes(params.classes, [0], params.guidance_scale)
        return [model.classes[label] for label in labels_of(params.classes, model.classes)]
    except ValueError as error:
        raise StageError(f"{paths.MODEL} cannot be asked for this: {error}") from None


def write_classes(classes: Sequence[ImageClass], num_images: int) -> None:
    """Write the class of each image as one row."""
    rows = [(image, each.number, each.name) for image, each in zip(range(num_images), cycle(classes), strict=False)]
    write_table(paths.SAMPLES_CLASSES, pd.DataFrame(rows, columns=["image", "class_number", "class_name"]))


def write_record(params: SampleParams, run_id: str, trained_on: dict[str, Any]) -> None:
    """Write the model, its training data, the MLflow run and the parameters behind the images."""
    digest = file_digest(paths.MODEL / f"{params.weights}.safetensors", "sha256")
    record = {"model_sha256": digest, "mlflow_run_id": run_id} | asdict(params)
    write_json(paths.SAMPLES_RECORD, record | trained_on)


if __name__ == "__main__":
    run_stage("sample", main, lambda params: params.sample.num_processes)
