"""Checks of the tensors that callers hand over: an error says what was got, what is allowed, and what to do."""

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

_COMPARABLE = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
})  # fmt: skip
"""Types that torch finds the least number of."""

_NUMBER_KINDS = "biuf"
"""Kinds of NumPy types that are numbers, and that a tensor can hold."""

_GREY_OR_COLOUR = (1, 3, 4)
"""Numbers of channels by which an image with its channels last is recognised."""


def require_pixels(pixels: object, name: str, channels: Collection[int] = ()) -> None:
    """Check that these are images as bytes.

    Args:
        pixels: whatever the caller handed over.
        name: the name of the caller's argument.
        channels: numbers of channels that are allowed; any, if it is empty.

    Raises:
        ValueError: they are not a uint8 tensor of shape (images, channels, height, width).
    """
    if not (isinstance(pixels, Tensor) and pixels.dtype == torch.uint8 and _has_shape(pixels, channels)):
        raise ValueError(_explain(pixels, name, "uint8", channels))


def require_images(images: object, name: str, channels: Collection[int] = ()) -> None:
    """Check that these are images in the model's range; see `require_pixels`. Their values are not looked at.

    Raises:
        ValueError: they are not a tensor of floats of shape (images, channels, height, width).
    """
    if not (isinstance(images, Tensor) and images.is_floating_point() and _has_shape(images, channels)):
        raise ValueError(_explain(images, name, "float", channels))


def require_features(features: object, name: str) -> None:
    """Check that these are vectors of features, one for each image.

    Raises:
        ValueError: they are not a tensor of finite floats of shape (images, features).
    """
    is_matrix = isinstance(features, Tensor) and features.is_floating_point() and features.ndim == 2
    if not (isinstance(features, Tensor) and is_matrix and bool(features.isfinite().all())):
        raise ValueError(f"{name} must be a tensor of finite floats (images, features), got {describe(features)}")


def require_indices(indices: object, name: str, count: int | None = None) -> None:
    """Check that these are whole numbers in a row.

    Raises:
        ValueError: they are not an int64 vector, or one lies outside 0 … count - 1.
    """
    is_vector = isinstance(indices, Tensor) and indices.dtype == torch.int64 and indices.ndim == 1
    is_inside = count is None or (
        isinstance(indices, Tensor) and is_vector and bool(((indices >= 0) & (indices < count)).all())
    )
    if not (is_vector and is_inside):
        numbers = "" if count is None else f" of numbers in 0 … {count - 1}"
        raise ValueError(f"{name} must be an int64 vector{numbers}, got {describe(indices)}")


def require_prediction(output: object, x_t: Tensor) -> None:
    """Check that a network gave an image for each image, which would otherwise be broadcast.

    Raises:
        ValueError: it did not.
    """
    if not (isinstance(output, Tensor) and output.is_floating_point() and output.shape == x_t.shape):
        raise ValueError(
            f"the network must give a float tensor of the shape that it was given, {tuple(x_t.shape)}, got "
            f"{describe(output)}; wrap it in a function that takes the prediction out of its result"
        )


def describe(value: object) -> str:
    """Describe a value in an error: of an array its kind, type, shape and range."""
    if not isinstance(value, Tensor | np.ndarray):
        return type(value).__name__
    kind = "a tensor" if isinstance(value, Tensor) else "a NumPy array"
    words = f"{kind} of {str(value.dtype).removeprefix('torch.')}, shape {tuple(value.shape)}"
    if (values := _find_range(value)) is None:
        return words
    return f"{words}, with NaN" if math.isnan(values[0]) else f"{words}, values {values[0]:g} … {values[1]:g}"


def _find_range(value: Tensor | np.ndarray) -> tuple[float, float] | None:
    """Return the least and the largest number; NaN where there is one, None where there are no numbers."""
    if isinstance(value, np.ndarray):
        return (float(value.min()), float(value.max())) if value.size and value.dtype.kind in _NUMBER_KINDS else None
    if value.numel() == 0 or value.is_complex() or value.is_meta:
        return None
    numbers = value.detach() if value.dtype in _COMPARABLE else value.detach().double()
    return float(numbers.min()), float(numbers.max())


def _has_shape(images: Tensor, channels: Collection[int]) -> bool:
    if images.ndim != 4 or 0 in images.shape[1:]:
        return False
    return images.shape[1] in channels if channels else not _is_channels_last(images.shape)


def _is_channels_last(shape: Sequence[int]) -> bool:
    if len(shape) != 4:
        return False
    _, height, width, channels = shape
    return channels in _GREY_OR_COLOUR and min(height, width) > max(_GREY_OR_COLOUR)


def _explain(images: object, name: str, dtype: str, channels: Collection[int]) -> str:
    allowed = " or ".join(map(str, channels)) or "channels"
    steps = ", then ".join(_advise(images, name, dtype))
    return (
        f"{name} must be a {dtype} tensor of shape (images, {allowed}, height, width), got {describe(images)}"
        f"{f'; make them so: {steps}' if steps else ''}"
    )


def _advise(images: object, name: str, dtype: str) -> Iterator[str]:
    """Yield the steps that make the images what they should be, as far as they can be known."""
    if not isinstance(images, Tensor | np.ndarray):
        return
    if isinstance(images, np.ndarray) and images.dtype.kind in _NUMBER_KINDS:
        yield f"torch.from_numpy({name})"
    shape = tuple(images.shape)
    if len(shape) == 3:
        yield "[None] for the axis of images"
        shape = (1, *shape)
    if _is_channels_last(shape):
        yield ".permute(0, 3, 1, 2), since the channels come second"
    given, values = str(images.dtype).removeprefix("torch."), _find_range(images)
    if dtype == "float" and given == "uint8":
        yield "ddpm.images.to_model_range"
    elif dtype == "uint8" and given != "uint8" and values is not None:
        low, high = values
        is_float = "float" in given or given == "bool"  # a mask is 0 and 1, too
        if is_float and low >= 0.0 and high <= 1.0:
            yield ".mul(255).round().to(torch.uint8)"
        elif is_float and low >= -1.0 and high <= 1.0:
            yield "ddpm.images.to_pixels"
        elif low >= 0 and high <= 255:
            yield f"{'.round()' if is_float else ''}.to(torch.uint8)"
        else:
            yield "bring the values to 0 … 255"
