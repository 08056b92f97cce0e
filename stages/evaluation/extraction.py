"""Extraction of features in a stage: by the extractor that the parameters name, shared among the processes."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from contract.errors import StageError
from contract.sections import ReferenceParams
from ddpm.distributed import collect, share
from ddpm.features import FeatureExtractor, build_extractor, extract_features


def load_extractor(params: ReferenceParams, device: torch.device) -> FeatureExtractor:
    """Load the extractor that the parameters name.

    Raises:
        StageError: its weights cannot be loaded.
    """
    weights = Path(params.inception_weights).expanduser() if params.inception_weights else None
    try:
        return build_extractor(params.extractor, device, weights)
    except OSError as error:
        raise StageError(
            f"the weights of {params.extractor} cannot be loaded: {error}; name their file by "
            "reference.inception_weights, or set reference.extractor to efficientnet_lite0, which needs none"
        ) from error


def describe_extractor(extractor: FeatureExtractor) -> dict[str, Any]:
    """Return the facts about an extractor without which its metrics cannot be compared."""
    return {
        "extractor": extractor.name,
        "resize": extractor.resize,
        "weights_sha256": extractor.weights_digest(),
        "extractor_versions": ", ".join(f"{name} {version(name)}" for name in ("torch", *extractor.packages)),
    }


def extract_together(
    extractor: FeatureExtractor,
    images: Tensor,
    positions: Tensor,
    batch_size: int,
    device: torch.device,
    bar: "tqdm[Any] | None" = None,
) -> Tensor:
    """Extract the features of the images at `positions`; each process extracts its share, and returns all.

    Returns:
        Features, float32, on the CPU, in the order of the positions.
    """
    batches = [torch.empty(0, extractor.num_features)]
    for part in torch.split(positions[share(len(positions))], batch_size):
        if len(part):
            batches += extract_features(extractor, images[part], batch_size, device)
            if bar is not None:
                bar.update(len(part))
    return collect(torch.cat(batches))


def choose_at_random(positions: Tensor, count: int | None, seed: int) -> Tensor:
    """Return at most `count` positions in random order, since datasets are ordered by class; None takes all."""
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
    return positions[order[:count]]
