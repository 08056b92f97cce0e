"""Extracting features in a stage: by the extractor that the parameters name, each process its share."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from contract.errors import StageError
from contract.sections import ReferenceParams
from ddpm.distributed import collected, share
from ddpm.features import FeatureExtractor, build_extractor, extract_features


def wanted_extractor(wanted: ReferenceParams, device: torch.device) -> FeatureExtractor:
    """The extractor of the parameters, on `device`.

    Raises:
        StageError: its weights cannot be had.
    """
    weights = Path(wanted.inception_weights).expanduser() if wanted.inception_weights else None
    try:
        return build_extractor(wanted.extractor, device, weights)
    except OSError as error:
        raise StageError(
            f"the weights of {wanted.extractor} cannot be had: {error}; name their file by "
            "reference.inception_weights, or set reference.extractor to efficientnet_lite0, which needs none"
        ) from error


def described(extractor: FeatureExtractor) -> dict[str, Any]:
    """What must stand beside figures that come from these features."""
    return {
        "extractor": extractor.name,
        "resize": extractor.resize,
        "weights_sha256": extractor.weights_digest(),
        "extractor_versions": ", ".join(f"{name} {version(name)}" for name in ("torch", *extractor.packages)),
    }


def features_of(
    extractor: FeatureExtractor,
    images: Tensor,
    positions: Tensor,
    batch_size: int,
    device: torch.device,
    bar: "tqdm[Any] | None" = None,
) -> Tensor:
    """The features of the images at `positions`, float32 on the CPU; each process extracts its share, and gets all."""
    batches = [torch.empty(0, extractor.num_features)]
    for part in torch.split(positions[share(len(positions))], batch_size):
        if len(part):
            batches += extract_features(extractor, images[part], batch_size, device)
            if bar is not None:
                bar.update(len(part))
    return collected(torch.cat(batches))


def at_random(positions: Tensor, count: int | None, seed: int) -> Tensor:
    """At most `count` of the positions, in random order: datasets come ordered by class."""
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
    return positions[order[:count]]
