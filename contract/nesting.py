"""Nested parameters and their dotted names."""

from collections.abc import Mapping
from typing import Any

from contract.errors import ParamsError


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"train": {"seed": 0}} as {"train.seed": 0}; lists and empty mappings stay values."""
    leaves: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"train.seed": 0} as {"train": {"seed": 0}}; the two forms may be mixed.

    Raises:
        ParamsError: a parameter is set twice, or a section is set to a value.
    """
    result: dict[str, Any] = {}
    leaves = [leaf for name, value in values.items() for leaf in flatten({name: value}).items()]
    for name, value in leaves:
        *sections, last = name.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ParamsError(f"{name} is part of a section that is set as a whole, to {place!r}: give one of them")
        if last in place:
            raise ParamsError(
                f"{name} is set twice, as a whole or in part, got {place[last]!r} and {value!r}: give one"
            )
        place[last] = value
    return result


def merge(document: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put `changes` into `document`: sections value by value, lists as a whole."""
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(document.get(name), dict):
            merge(document[name], value)
        else:
            document[name] = value
