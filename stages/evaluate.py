"""Compare the samples with real images: Fréchet and kernel distances, beside what real images would reach."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.data import load_images
from ddpm.devices import best_device
from ddpm.distributed import collected, is_first, share
from ddpm.features import FeatureExtractor, build_extractor, extract_features
from ddpm.files import atomic_path
from ddpm.metrics import frechet_distance, kernel_distance
from stages.errors import StageError
from stages.params import Params
from stages.paths import METRICS, SAMPLES, SAMPLES_RECORD
from stages.prepared import images_of, recorded_run_id
from stages.progress import progress_bar
from stages.runner import run_stage
from stages.sections import EvaluateParams
from stages.tracking import reopened_run

LEAST_IMAGES = 10
"""Of a set, for a distance to be worth its name."""


def main(params: Params) -> None:
    """build/metrics.json, and the same in MLflow."""
    wanted, earlier_run_id = params.evaluate, recorded_run_id(SAMPLES_RECORD)
    if not wanted.enabled:
        if is_first():
            write({"evaluated": False, "mlflow_run_id": earlier_run_id})
            print("evaluate: switched off by evaluate.enabled", flush=True)
        return
    with reopened_run(params, "evaluate", earlier_run_id) as tracker:
        sets = compared_sets(wanted)
        features = features_of(sets, wanted)
        if not is_first():
            return
        metrics = measured(sets, features, wanted)
        write(metrics | {"mlflow_run_id": tracker.run_id})
        # Figures make charts; counts, splits and versions are what to read beside them.
        figures = {name: value for name, value in metrics.items() if isinstance(value, float)}
        tracker.record_metrics(figures, params.train.num_steps)
        tracker.record_tags({f"evaluate.{name}": str(value) for name, value in metrics.items() if name not in figures})
    for line in report(metrics, wanted):
        print(f"evaluate: {line}", flush=True)


def write(metrics: dict[str, Any]) -> None:
    """build/metrics.json."""
    with atomic_path(METRICS) as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")


def measured(sets: dict[str, Tensor], features: dict[str, Tensor], wanted: EvaluateParams) -> dict[str, Any]:
    """Every figure, with what it needs to be reproduced."""
    suffix = wanted.extractor
    metrics: dict[str, Any] = {}
    for name, ending in (("samples", ""), ("floor", "_floor")):
        if name not in sets:
            continue
        kernel = kernel_distance(
            features["reference"], features[name], wanted.kernel_subsets, wanted.kernel_subset_size, wanted.seed
        )
        metrics[f"fd_{suffix}{ending}"] = frechet_distance(features["reference"], features[name])
        metrics[f"kid_{suffix}{ending}"] = kernel.mean
        metrics[f"kid_{suffix}{ending}_std"] = kernel.std
        smaller_set = min(len(sets["reference"]), len(sets[name]))
        metrics[f"kernel_subset_size{ending}"] = min(wanted.kernel_subset_size, smaller_set)
    return metrics | {
        **{f"num_{name}": len(images) for name, images in sets.items()},
        "reference_split": wanted.reference_split,
        "floor_split": wanted.floor_split,
        "extractor": wanted.extractor,
        "library": f"torchmetrics {version('torchmetrics')}",
    }


def compared_sets(wanted: EvaluateParams) -> dict[str, Tensor]:
    """The reference, the samples, and the floor: other real images, as many as there are samples where there are.

    The floor stays away where its split is too small for a distance.

    Raises:
        StageError: the reference or the samples are too few.
    """
    samples = load_images(SAMPLES / "samples.npy")
    reference = chosen(images_of([wanted.reference_split]), wanted.max_reference_images, wanted.seed)
    sets = {"reference": reference, "samples": samples}
    for name, images in sets.items():
        if len(images) < LEAST_IMAGES:
            raise StageError(
                f"{name} holds {len(images)} images, and a distance needs {LEAST_IMAGES}: sample more, prepare more, "
                "or set evaluate.enabled to false"
            )
    try:
        floor = chosen(images_of([wanted.floor_split]), len(samples), wanted.seed)
    except StageError:  # a small folder of images may leave a split empty
        floor = samples[:0]
    if len(floor) < LEAST_IMAGES:
        if is_first():
            print(f"evaluate: no floor, since split {wanted.floor_split} holds {len(floor)} images", flush=True)
        return sets
    return sets | {"floor": floor}


def chosen(images: Tensor, count: int, seed: int) -> Tensor:
    """At most `count` of the images, at random: datasets come ordered by class."""
    if len(images) <= count:
        return images
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]]


def features_of(sets: dict[str, Tensor], wanted: EvaluateParams) -> dict[str, Tensor]:
    """The features of each set; each process extracts its share of them.

    Raises:
        StageError: the extractor's weights cannot be had.
    """
    device = best_device()
    weights = Path(wanted.inception_weights).expanduser() if wanted.inception_weights else None
    try:
        extractor: FeatureExtractor = build_extractor(wanted.extractor, device, weights)
    except OSError as error:
        raise StageError(
            f"the weights of {wanted.extractor} cannot be had: {error}; name their file by evaluate.inception_weights, "
            "or set evaluate.extractor to efficientnet_lite0, which needs none"
        ) from error
    features = {}
    shares = {name: images[share(len(images))] for name, images in sets.items()}
    with progress_bar("evaluate", sum(len(images) for images in shares.values()), "images") as bar:
        for name, images in shares.items():
            batches = [torch.empty(0, extractor.num_features)]
            for batch in extract_features(extractor, images, wanted.batch_size, device):
                batches.append(batch)
                bar.update(len(batch))
            features[name] = collected(torch.cat(batches))
    return features


def report(metrics: dict[str, Any], wanted: EvaluateParams) -> list[str]:
    """The figures for the terminal."""
    fd, kid = f"fd_{wanted.extractor}", f"kid_{wanted.extractor}"
    lines = [
        f"{metrics['num_samples']} samples against {metrics['num_reference']} images of split "
        f"{wanted.reference_split}: {fd} {metrics[fd]:.1f}, {kid} {metrics[kid]:.4f} ± {metrics[f'{kid}_std']:.4f}"
    ]
    if "num_floor" in metrics:
        lines.append(
            f"{metrics['num_floor']} real images of split {wanted.floor_split} against the same: "
            f"{fd} {metrics[f'{fd}_floor']:.1f}, {kid} {metrics[f'{kid}_floor']:.4f}"
        )
    return lines


if __name__ == "__main__":
    run_stage("evaluate", main, lambda params: params.evaluate.num_processes)
