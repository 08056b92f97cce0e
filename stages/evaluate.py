"""Compare the samples with real images: distances, precision and recall beside what real images reach, and copies."""

import json
from importlib.metadata import version
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from contract.errors import StageError
from contract.params import Params
from contract.paths import CLOSEST_PAIRS, METRICS, NEAREST, REFERENCE, SAMPLES, SAMPLES_RECORD
from contract.sections import LEAST_COMPARED_IMAGES, EvaluateParams, ReferenceParams
from ddpm.data import load_images
from ddpm.devices import prepare_best_device
from ddpm.distributed import is_first
from ddpm.files import atomic_path
from ddpm.images import enlargement, save_png
from ddpm.memorisation import nearest_images
from ddpm.metrics import NEIGHBOURHOOD, frechet_distance, kernel_distance, precision_recall
from stages.datasets.prepared import all_images, dataset_digest, recorded_run_id
from stages.evaluation.extraction import described, features_of, wanted_extractor
from stages.evaluation.memorisation import closest_pairs, memorisation_figures, nearest_table
from stages.evaluation.real_features import RealFeatures, read_real_features, read_record
from stages.runtime.progress import progress_bar
from stages.runtime.runner import run_stage
from tracking.runs import Tracker, reopen_run


def main(params: Params) -> None:
    """build/metrics.json and build/evaluation/, and the same in MLflow."""
    earlier_run_id = recorded_run_id(SAMPLES_RECORD)
    if not params.evaluate.enabled:
        if is_first():
            write_metrics({"evaluated": False, "mlflow_run_id": earlier_run_id})
            write_nearest(pd.DataFrame(columns=["sample", "distance"]))
            print("evaluate: switched off by evaluate.enabled", flush=True)
        return
    with reopen_run(params, "evaluate", earlier_run_id) as tracker:
        samples = load_images(SAMPLES / "samples.npy")
        real, features, made_by = compared_features(samples, params.reference)
        if is_first():
            evaluate(params, tracker, samples, features, real, made_by)


def evaluate(
    params: Params,
    tracker: Tracker,
    samples: Tensor,
    features: Tensor,
    real: RealFeatures,
    made_by: dict[str, Any],
) -> None:
    """All figures, tables and pictures, written and recorded."""
    wanted = params.evaluate
    metrics = measured(compared_sets(real, features, wanted), wanted, made_by["extractor"])
    # A split that holds no image may be named, too.
    train_splits = [one for one in json.loads(SAMPLES_RECORD.read_text())["train_splits"] if one in real.features]
    nearest = nearest_images(features, real.of(train_splits))
    metrics |= memorisation_figures(nearest, real, train_splits, made_by["extractor"]) | made_by
    table = nearest_table(nearest, real, train_splits)
    pairs = closest_pairs(samples, all_images(), table, wanted.num_closest_pairs)
    write_metrics(metrics | {"mlflow_run_id": tracker.run_id})
    write_nearest(table)
    with atomic_path(CLOSEST_PAIRS) as temporary:
        save_png(torch.from_numpy(pairs), temporary, scale=enlargement(samples.shape[-1]))
    # Figures make charts; counts, splits and versions are what to read beside them.
    figures = {name: value for name, value in metrics.items() if isinstance(value, float)}
    tracker.record_metrics(figures, params.train.num_steps)
    tracker.record_tags({f"evaluate.{name}": str(value) for name, value in metrics.items() if name not in figures})
    tracker.record_image("closest_pairs", pairs)
    for path in (NEAREST, CLOSEST_PAIRS):
        tracker.record_file(path, "evaluation")
    for line in report(metrics):
        print(f"evaluate: {line}", flush=True)


def write_metrics(metrics: dict[str, Any]) -> None:
    """build/metrics.json."""
    with atomic_path(METRICS) as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")


def write_nearest(table: pd.DataFrame) -> None:
    """build/evaluation/nearest.csv."""
    with atomic_path(NEAREST) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def compared_features(samples: Tensor, wanted: ReferenceParams) -> tuple[RealFeatures, Tensor, dict[str, Any]]:
    """The real images' features, those of the samples, and what both were made by.

    Raises:
        StageError: the real images' features are of another dataset, or by another extractor.
    """
    device = prepare_best_device()
    _require_same(read_record(REFERENCE), {"extracted": True, "dataset_md5": dataset_digest()})
    extractor = wanted_extractor(wanted, device)
    made_by = described(extractor)
    _require_same(read_record(REFERENCE), {name: made_by[name] for name in ("extractor", "weights_sha256")})
    with progress_bar("evaluate", len(samples), "images") as bar:
        features = features_of(extractor, samples, torch.arange(len(samples)), wanted.batch_size, device, bar)
    return read_real_features(REFERENCE), features, made_by | {"dataset_md5": dataset_digest()}


def _require_same(record: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if record.get(name) != value:
            raise StageError(
                f"{REFERENCE} holds features whose {name} is {record.get(name)}, and {value} is wanted: "
                "`dvc repro --force --single-item reference` makes them anew"
            )


def compared_sets(real: RealFeatures, samples: Tensor, wanted: EvaluateParams) -> dict[str, Tensor]:
    """The reference, the samples, and as floors the other splits, of each as many images as samples where there are.

    A split too small for a distance is left out.

    Raises:
        StageError: the reference or the samples are too few.
    """
    sets = {"reference": real.features.get(wanted.reference_split, samples[:0]), "samples": samples}
    for name, features in sets.items():
        if len(features) < LEAST_COMPARED_IMAGES:
            of_split = f" (split {wanted.reference_split})" if name == "reference" else ""
            raise StageError(
                f"{name}{of_split} holds {len(features)} images, and a distance needs {LEAST_COMPARED_IMAGES}: "
                "sample more, prepare more, or set evaluate.enabled to false"
            )
    for split, features in real.features.items():
        if split == wanted.reference_split:
            continue
        if len(features) < LEAST_COMPARED_IMAGES:
            print(f"evaluate: no floor of split {split}, since it holds {len(features)} images", flush=True)
            continue
        sets[f"floor_{split}"] = features[: len(samples)]  # they stand in random order
    return sets


def measured(sets: dict[str, Tensor], wanted: EvaluateParams, suffix: str) -> dict[str, Any]:
    """Every figure of each set against the reference, the kernel distance first, and what it takes to repeat them."""
    reference = sets["reference"]
    metrics: dict[str, Any] = {}
    for name, features in sets.items():
        if name == "reference":
            continue
        ending = "" if name == "samples" else f"_{name}"
        kernel = kernel_distance(reference, features, wanted.kernel_subsets, wanted.kernel_subset_size, wanted.seed)
        shares = precision_recall(reference, features)
        kid = f"kid_{suffix}{ending}"
        metrics |= {kid: kernel.mean, f"{kid}_low": kernel.low, f"{kid}_high": kernel.high, f"{kid}_std": kernel.std}
        metrics[f"fd_{suffix}{ending}"] = frechet_distance(reference, features)
        metrics |= {f"precision_{suffix}{ending}": shares.precision, f"recall_{suffix}{ending}": shares.recall}
        metrics[f"kernel_subset_size{ending}"] = min(wanted.kernel_subset_size, len(reference), len(features))
    return metrics | {
        **{f"num_{name}": len(features) for name, features in sets.items()},
        "reference_split": wanted.reference_split,
        "kernel_subsets": wanted.kernel_subsets,
        "kernel_interval": "95 %: jackknife over images, and the subsets' standard error",
        "precision_recall_neighbourhood": NEIGHBOURHOOD,
        "library": ", ".join(f"{name} {version(name)}" for name in ("torchmetrics", "torch-fidelity")),
    }


def report(metrics: dict[str, Any]) -> list[str]:
    """The figures for the terminal."""
    suffix, split = metrics["extractor"], metrics["reference_split"]
    sets = [name for name in metrics if name.startswith("num_floor_")]
    lines = [
        f"{metrics['num_samples']} samples against {metrics['num_reference']} images of split {split}: "
        + _figures(metrics, suffix, "")
    ]
    for name in sets:
        floor = name.removeprefix("num_")
        lines.append(
            f"{metrics[name]} real images of split {floor.removeprefix('floor_')} against the same: "
            + _figures(metrics, suffix, f"_{floor}")
        )
    if (share := metrics.get(f"memorised_share_{suffix}")) is not None:
        lines.append(
            f"{100 * share:.1f} % of the samples are as near to a training image as the nearest "
            f"{100 * metrics['memorised_share_expected']:.0f} % of {metrics['num_held_out']} held-out images"
        )
    return lines


def _figures(metrics: dict[str, Any], suffix: str, ending: str) -> str:
    kid = f"kid_{suffix}{ending}"
    return (
        f"kid_{suffix} {metrics[kid]:.4f} (95 %: {metrics[f'{kid}_low']:.4f} … {metrics[f'{kid}_high']:.4f}), "
        f"fd_{suffix} {metrics[f'fd_{suffix}{ending}']:.1f}, "
        f"precision {metrics[f'precision_{suffix}{ending}']:.2f}, recall {metrics[f'recall_{suffix}{ending}']:.2f}"
    )


if __name__ == "__main__":
    run_stage("evaluate", main, lambda params: params.reference.num_processes)
