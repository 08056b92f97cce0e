"""Compare the samples with real images: distances, precision and recall beside those of real images, and copies."""

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from contract.documents import explain_damage, read_result
from contract.errors import StageError
from contract.params import Params
from contract.paths import CLOSEST_PAIRS, METRICS, NEAREST, REFERENCE, SAMPLES, SAMPLES_RECORD
from contract.sections import ReferenceParams
from ddpm.data import load_images
from ddpm.devices import prepare_best_device
from ddpm.distributed import is_first
from ddpm.files import atomic_path
from ddpm.images import enlargement, save_png
from ddpm.memorisation import nearest_images
from stages.datasets.prepared import all_images, dataset_digest
from stages.evaluation.distances import choose_sets, describe_metrics, measure_distances
from stages.evaluation.extraction import describe_extractor, extract_together, load_extractor
from stages.evaluation.memorisation import draw_closest_pairs, measure_memorisation, tabulate_nearest
from stages.evaluation.real_features import read_real_features, read_record
from stages.runtime.outputs import write_json, write_table
from stages.runtime.reporting import progress_bar, say
from stages.runtime.runner import run_stage
from tracking.runs import Tracker, open_run, read_run_id


def main(params: Params) -> None:
    """Compare build/samples with build/reference; write build/metrics.json and build/evaluation."""
    samples_run_id = read_run_id(SAMPLES_RECORD)
    if not params.evaluate.enabled:
        if is_first():
            write_json(METRICS, {"evaluated": False, "mlflow_run_id": samples_run_id})
            write_table(NEAREST, pd.DataFrame(columns=["sample", "distance"]))
            say("evaluate", "switched off by evaluate.enabled")
        return
    with open_run(params, "evaluate", samples_run_id) as tracker:
        with explain_damage(SAMPLES / "samples.npy") as path:
            samples = load_images(path)
        features, made_by = extract_samples(samples, params.reference)
        if is_first():
            evaluate(params, tracker, samples, features, made_by)


def extract_samples(samples: Tensor, params: ReferenceParams) -> tuple[Tensor, dict[str, Any]]:
    """Return the features of the samples, and the extractor and dataset that they are compared by.

    Raises:
        StageError: the features in build/reference are of another dataset, or by another extractor.
    """
    device = prepare_best_device()
    extractor = load_extractor(params, device)
    made_by = describe_extractor(extractor) | {"dataset_md5": dataset_digest()}
    expected, record = {"extracted": True} | made_by, read_record(REFERENCE)
    for name in ("extracted", "dataset_md5", "extractor", "weights_sha256"):
        if record.get(name) != expected[name]:
            raise StageError(
                f"{REFERENCE} holds features whose {name} is {record.get(name)}, expected {expected[name]}: "
                "`dvc repro --force --single-item reference` makes them anew"
            )
    with progress_bar("evaluate", len(samples), "images") as bar:
        numbers = torch.arange(len(samples))
        return extract_together(extractor, samples, numbers, params.batch_size, device, bar), made_by


def evaluate(params: Params, tracker: Tracker, samples: Tensor, features: Tensor, made_by: dict[str, Any]) -> None:
    """Compute all metrics, tables and pictures, write them and record them in MLflow."""
    real, extractor = read_real_features(REFERENCE), made_by["extractor"]
    # A split without images may be named, too.
    train_splits = [split for split in read_result(SAMPLES_RECORD)["train_splits"] if split in real.features]
    metrics = measure_distances(choose_sets(real, features, params.evaluate), params.evaluate, extractor)
    nearest = nearest_images(features, real.select(train_splits))
    metrics |= measure_memorisation(nearest, real, train_splits, extractor) | made_by
    table = tabulate_nearest(nearest, real, train_splits)
    pairs = draw_closest_pairs(samples, all_images(), table, params.evaluate.num_closest_pairs)
    write_json(METRICS, metrics | {"mlflow_run_id": tracker.run_id})
    write_table(NEAREST, table)
    with atomic_path(CLOSEST_PAIRS) as temporary:
        save_png(pairs, temporary, enlargement(samples.shape[-1]))
    # MLflow draws metrics as charts; counts, splits and versions are text to read beside them.
    charted = {name: value for name, value in metrics.items() if isinstance(value, float)}
    tracker.record_metrics(charted, params.train.num_steps)
    tracker.record_tags({f"evaluate.{name}": str(value) for name, value in metrics.items() if name not in charted})
    tracker.record_image("closest_pairs", pairs)
    for path in (NEAREST, CLOSEST_PAIRS):
        tracker.record_file(path, "evaluation")
    for line in describe_metrics(metrics):
        say("evaluate", line)


if __name__ == "__main__":
    run_stage("evaluate", main, lambda params: params.reference.num_processes)
