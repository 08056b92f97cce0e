"""The metrics of an evaluation in words."""

from typing import Any


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
