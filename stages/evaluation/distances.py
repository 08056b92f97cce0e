"""Distances of samples and of other real images from a reference set: metrics for metrics.json, and in words."""

from importlib.metadata import version
from typing import Any

from torch import Tensor

from contract.errors import StageError
from contract.paths import SAMPLES
from contract.sections import MIN_COMPARED_IMAGES, EvaluateParams
from ddpm.metrics import NEIGHBOURHOOD, frechet_distance, kernel_distance, precision_recall
from stages.datasets.suitability import check_reference
from stages.evaluation.real_features import RealFeatures
from stages.runtime.reporting import say


def choose_sets(real: RealFeatures, samples: Tensor, params: EvaluateParams) -> dict[str, Tensor]:
    """Return the features of the reference, of the samples, and of the other splits, named floor_SPLIT.

    A floor has at most as many images as there are samples; a split too small for a distance is left out.

    Raises:
        StageError: the reference or the samples are too few.
    """
    check_reference({split: len(features) for split, features in real.features.items()}, params.reference_split)
    if len(samples) < MIN_COMPARED_IMAGES:
        raise StageError(
            f"{SAMPLES} holds {len(samples)} images, and a distance needs {MIN_COMPARED_IMAGES}: raise "
            "sample.num_images, or set evaluate.enabled to false"
        )
    sets = {"reference": real.features[params.reference_split], "samples": samples}
    for split, features in real.features.items():
        if split == params.reference_split:
            continue
        if len(features) < MIN_COMPARED_IMAGES:
            say("evaluate", f"no floor of split {split}, since it holds {len(features)} images")
            continue
        sets[f"floor_{split}"] = features[: len(samples)]  # the images are in random order
    return sets


def measure_distances(sets: dict[str, Tensor], params: EvaluateParams, suffix: str) -> dict[str, Any]:
    """Return the metrics of each set against the reference, kernel distance first, and all needed to repeat them."""
    reference = sets["reference"]
    metrics: dict[str, Any] = {}
    for name, features in sets.items():
        if name == "reference":
            continue
        ending = "" if name == "samples" else f"_{name}"
        kernel = kernel_distance(reference, features, params.kernel_subsets, params.kernel_subset_size, params.seed)
        shares = precision_recall(reference, features)
        kid = f"kid_{suffix}{ending}"
        metrics |= {kid: kernel.mean, f"{kid}_low": kernel.low, f"{kid}_high": kernel.high, f"{kid}_std": kernel.std}
        metrics[f"fd_{suffix}{ending}"] = frechet_distance(reference, features)
        metrics |= {f"precision_{suffix}{ending}": shares.precision, f"recall_{suffix}{ending}": shares.recall}
        metrics[f"kernel_subset_size{ending}"] = min(params.kernel_subset_size, len(reference), len(features))
    return metrics | {
        **{f"num_{name}": len(features) for name, features in sets.items()},
        "reference_split": params.reference_split,
        "kernel_subsets": params.kernel_subsets,
        "kernel_interval": "95 %: jackknife over images, and the subsets' standard error",
        "precision_recall_neighbourhood": NEIGHBOURHOOD,
        "library": f"torch-fidelity {version('torch-fidelity')}",
    }


def describe_metrics(metrics: dict[str, Any]) -> list[str]:
    """Describe the metrics of the samples, then of real images, then the share of memorised samples, a line each."""
    suffix = metrics["extractor"]
    against = f"{metrics['num_reference']} images of split {metrics['reference_split']}"
    lines = [f"{metrics['num_samples']} samples against {against}: {_describe_set(metrics, suffix)}"]
    for split in (name.removeprefix("num_floor_") for name in metrics if name.startswith("num_floor_")):
        images = f"{metrics[f'num_floor_{split}']} real images of split {split}"
        lines.append(f"{images} against the same: {_describe_set(metrics, f'{suffix}_floor_{split}')}")
    if (share := metrics.get(f"memorised_share_{suffix}")) is not None:
        lines.append(
            f"{100 * share:.1f} % of the samples are as near to a training image as the nearest "
            f"{100 * metrics['memorised_share_expected']:.0f} % of {metrics['num_held_out']} held-out images"
        )
    return lines


def _describe_set(metrics: dict[str, Any], ending: str) -> str:
    extractor, kid = metrics["extractor"], f"kid_{ending}"
    return (
        f"kid_{extractor} {metrics[kid]:.4f} (95 %: {metrics[f'{kid}_low']:.4f} … {metrics[f'{kid}_high']:.4f}), "
        f"fd_{extractor} {metrics[f'fd_{ending}']:.1f}, "
        f"precision {metrics[f'precision_{ending}']:.2f}, recall {metrics[f'recall_{ending}']:.2f}"
    )
