"""Compare the samples with real images: Fréchet and kernel distances, beside what real images would reach."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.data import load_images
from ddpm.features import FeatureExtractor, build_extractor, extract_features
from ddpm.files import atomic_path
from ddpm.metrics import frechet_distance, kernel_distance
from stages.device import best_device
from stages.errors import StageError
from stages.params import EvaluateParams, Params
from stages.paths import METRICS, SAMPLES
from stages.prepared import images_of, model_run_id
from stages.progress import progress_bar
from stages.runner import run_stage
from stages.tracking import reopened_run

LEAST_IMAGES = 10
"""Of a set, for a distance to be worth its name."""


def main(params: Params) -> None:
    """build/metrics.json, and the same in MLflow."""
    wanted = params.evaluate
    metrics = measured(wanted) if wanted.enabled else {"evaluated": False}
    with atomic_path(METRICS) as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    if not wanted.enabled:
        print("evaluate: switched off by evaluate.enabled", flush=True)
        return
    with reopened_run(params, "evaluate", model_run_id()) as tracker:
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        tracker.record_metrics(numbers, params.train.num_steps)
        tracker.record_tags({f"evaluate.{name}": str(value) for name, value in metrics.items() if name not in numbers})
    for line in report(metrics, wanted):
        print(f"evaluate: {line}", flush=True)


def measured(wanted: EvaluateParams) -> dict[str, Any]:
    """Every figure, with what it needs to be reproduced.

    Raises:
        StageError: a set holds too few images.
    """
    reference = images_of([wanted.reference_split])[: wanted.max_reference_images]
    samples = load_images(SAMPLES / "samples.npy")
    # A Fréchet distance depends on the counts: the floor is taken with as many real images as there are samples.
    floor = images_of([wanted.floor_split])[: len(samples)]
    sets = {"reference": reference, "samples": samples, "floor": floor}
    for name, images in sets.items():
        if len(images) < LEAST_IMAGES:
            raise StageError(
                f"{name} holds {len(images)} images, and a distance needs {LEAST_IMAGES}: sample more, prepare more, "
                "or set evaluate.enabled to false"
            )
    features = features_of(sets, wanted)
    suffix = wanted.extractor
    metrics: dict[str, Any] = {}
    for name, ending in (("samples", ""), ("floor", "_floor")):
        kernel = kernel_distance(
            features["reference"], features[name], wanted.kernel_subsets, wanted.kernel_subset_size, wanted.seed
        )
        metrics[f"fd_{suffix}{ending}"] = frechet_distance(features["reference"], features[name])
        metrics[f"kid_{suffix}{ending}"] = kernel.mean
        metrics[f"kid_{suffix}{ending}_std"] = kernel.std
    return metrics | {
        "num_samples": len(samples),
        "num_reference": len(reference),
        "num_floor": len(floor),
        "reference_split": wanted.reference_split,
        "floor_split": wanted.floor_split,
        "kernel_subset_size": min(wanted.kernel_subset_size, *(len(images) for images in sets.values())),
        "extractor": wanted.extractor,
        "library": f"torchmetrics {version('torchmetrics')}",
    }


def features_of(sets: dict[str, Tensor], wanted: EvaluateParams) -> dict[str, Tensor]:
    """The features of each set.

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
    with progress_bar("evaluate", sum(len(images) for images in sets.values()), "images") as bar:
        for name, images in sets.items():
            batches = []
            for batch in extract_features(extractor, images, wanted.batch_size, device):
                batches.append(batch)
                bar.update(len(batch))
            features[name] = torch.cat(batches)
    return features


def report(metrics: dict[str, Any], wanted: EvaluateParams) -> list[str]:
    """The figures for the terminal."""
    fd, kid = f"fd_{wanted.extractor}", f"kid_{wanted.extractor}"
    return [
        f"{fd} {metrics[fd]:.1f} (real images: {metrics[f'{fd}_floor']:.1f}), "
        f"{metrics['num_samples']} samples against {metrics['num_reference']} of split {wanted.reference_split}",
        f"{kid} {metrics[kid]:.4f} ± {metrics[f'{kid}_std']:.4f} (real images: {metrics[f'{kid}_floor']:.4f})",
    ]


if __name__ == "__main__":
    run_stage("evaluate", main)
