"""The figures of an evaluation in words."""

from typing import Any


def describe_metrics(metrics: dict[str, Any]) -> list[str]:
    """Describe the figures of the samples, then of real images, then the share of memorised samples, a line each."""
    suffix, split = metrics["extractor"], metrics["reference_split"]
    lines = [
        f"{metrics['num_samples']} samples against {metrics['num_reference']} images of split {split}: "
        + _describe_distances(metrics, suffix, "")
    ]
    lines += [
        f"{metrics[f'num_{floor}']} real images of split {floor.removeprefix('floor_')} against the same: "
        + _describe_distances(metrics, suffix, f"_{floor}")
        for floor in [name.removeprefix("num_") for name in metrics if name.startswith("num_floor_")]
    ]
    if (share := metrics.get(f"memorised_share_{suffix}")) is not None:
        lines.append(
            f"{100 * share:.1f} % of the samples are as near to a training image as the nearest "
            f"{100 * metrics['memorised_share_expected']:.0f} % of {metrics['num_held_out']} held-out images"
        )
    return lines


def _describe_distances(metrics: dict[str, Any], suffix: str, ending: str) -> str:
    kid = f"kid_{suffix}{ending}"
    return (
        f"kid_{suffix} {metrics[kid]:.4f} (95 %: {metrics[f'{kid}_low']:.4f} … {metrics[f'{kid}_high']:.4f}), "
        f"fd_{suffix} {metrics[f'fd_{suffix}{ending}']:.1f}, "
        f"precision {metrics[f'precision_{suffix}{ending}']:.2f}, recall {metrics[f'recall_{suffix}{ending}']:.2f}"
    )
