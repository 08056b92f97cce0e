"""Classifier-free guidance: turns a class-conditional network into a noise model for images of given classes."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ddpm.checks import require_indices
from ddpm.classes import NO_CLASS
from ddpm.diffusion import NoiseModel
from ddpm.shapes import Float, Int64


@runtime_checkable
class ConditionalModel(Protocol):
    """A network that predicts from (x_t, t, labels), such as a UNet with `num_classes`."""

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, /) -> Tensor: ...


def guided(network: ConditionalModel, labels: Int64[Tensor, " batch"], guidance_scale: float = 1.0) -> NoiseModel:
    """Return a noise model that asks the network for images of these classes.

    Ho & Salimans 2022, Eq. 6: (1 + w) eps_pred(x_t, t, label) - w eps_pred(x_t, t, no class). The scale here is that of
    most implementations, guidance_scale = 1 + w: 1 is the plain conditional prediction (w = 0), 0 the unconditional
    one (w = -1), above 1 the class is exaggerated. If v or x_0 is predicted, the same sum of v or x_0 is taken: at
    given x_t and t both are affine functions of eps, and weights that add up to one commute with an affine function.

    A scale other than 0 and 1 needs a network that was trained with label dropout, and costs one call on a doubled
    batch.

    Args:
        network: predicts eps, v or x_0.
        labels: class of each image of the batch that the result will be called with, or NO_CLASS.
        guidance_scale: at least 0.

    Raises:
        ValueError: the scale is negative, or the labels are no labels.
    """
    require_indices(labels, "labels")
    if not guidance_scale >= 0.0:
        raise ValueError(f"guidance_scale must be at least 0, got {guidance_scale}")
    no_class = torch.full_like(labels, NO_CLASS)

    def predict(
        x_t: Float[Tensor, "batch channels height width"], t: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        if guidance_scale == 1.0:
            return network(x_t, t, labels)
        if guidance_scale == 0.0:
            return network(x_t, t, no_class)
        both = network(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([labels, no_class]))
        # In the precision of the images: the scale multiplies a difference, and with it the rounding error.
        conditional, unconditional = both.to(x_t.dtype).chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    return predict


def labels_in_turn(labels: Sequence[int], image_numbers: Sequence[int]) -> Int64[Tensor, " batch"]:
    """A label for each image: image i has the label number i mod len(labels).

    Args:
        labels: at least one.
        image_numbers: of the images, each at least 0.
    """
    return torch.tensor([labels[number % len(labels)] for number in image_numbers], dtype=torch.int64)
