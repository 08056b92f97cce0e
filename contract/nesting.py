"""Nested parameters and their dotted names."""

from collections.abc import Mapping
from typing import Any


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"train": {"seed": 0}} as {"train.seed": 0}; lists stay values."""
    leaves: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def merge(document: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put `changes` into `document`: sections value by value, lists as a whole."""
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(document.get(name), dict):
            merge(document[name], value)
        else:
            document[name] = value
