"""The experiments of a sweep: a grid or a list of overrides, spelt out and checked before any of them starts."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contract.nesting import flatten
from contract.params import Params, ParamsError, compose

MAX_CHILDREN = 256
"""What one sweep may start: more is rather a slip of the hand."""


class SweepError(Exception):
    """A sweep cannot be started; the message names all that is wrong with it."""


@dataclass(frozen=True)
class Child:
    """One experiment of a sweep."""

    name: str
    """of its flow run: the sweep's, and a number from 1"""
    overrides: dict[str, Any]
    """nested, over the profile"""
    varied: dict[str, Any]
    """the part that the sweep varies, by dotted names"""
    params: Params
    """all that comes of it"""

    @property
    def described(self) -> str:
        """For the log."""
        return f"{self.name} ({', '.join(f'{name}={value}' for name, value in self.varied.items())})"


def children_of(
    sweep: str,
    profile: str | None,
    shared: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    overrides: Sequence[Mapping[str, Any]],
) -> list[Child]:
    """The children of a sweep, in order, each checked.

    Args:
        sweep: its name.
        profile: a saved experiment; None takes params.yaml as it is.
        shared: nested or dotted, what all children have over the profile.
        grid: dotted names, each with the values that it takes, in every combination.
        overrides: nested or dotted, those of each child.

    Raises:
        SweepError: there is nothing to vary, or too much, or some of the children cannot be used.
    """
    if bool(grid) == bool(overrides):
        got = "both" if grid else "neither"
        raise SweepError(f"a sweep takes a grid or a list of overrides, got {got}")
    try:
        compose(profile, nested(shared))
    except ParamsError as error:
        raise SweepError(str(error)) from None
    choices = list(itertools.islice(combinations(grid) if grid else iter(overrides), MAX_CHILDREN + 1))
    if len(choices) > MAX_CHILDREN:
        raise SweepError(f"a sweep starts at most {MAX_CHILDREN} children; give fewer values")
    children, problems = [], []
    for number, choice in enumerate(choices, start=1):
        try:
            children.append(_child(f"{sweep}-{number}", profile, shared, choice))
        except ParamsError as error:
            problems.append(f"  {_told(choice)}: {_of_one(error)}")
    _ensure_different(children, problems)
    if problems:
        raise SweepError("\n".join([f"{len(problems)} of {len(choices)} children cannot be used:", *problems]))
    return children


def combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values; those of the last name change fastest.

    Raises:
        SweepError: a name has no list of values.
    """
    for name, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise SweepError(f"a grid gives each parameter a list of values, such as [0.001, 0.002]: {name}={values!r}")
    for chosen in itertools.product(*grid.values()):
        yield dict(zip(grid, chosen, strict=True))


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """{"train.seed": 0} as {"train": {"seed": 0}}, mixed forms joined.

    Raises:
        ParamsError: a parameter is set twice, or a section is set to a value.
    """
    result: dict[str, Any] = {}
    for name, value in overrides.items():
        leaves = flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
        for leaf, leaf_value in leaves.items():
            _put(result, leaf, leaf_value)
    return result


def _put(result: dict[str, Any], name: str, value: Any) -> None:
    *sections, leaf = name.split(".")
    place = result
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ParamsError(f"{name} is a part of what is set whole")
    if leaf in place:
        raise ParamsError(f"{name} is set twice")
    place[leaf] = value


def _child(name: str, profile: str | None, shared: Mapping[str, Any], choice: Mapping[str, Any]) -> Child:
    varied = flatten(nested(choice))
    overrides = nested(flatten(nested(shared)) | varied)
    return Child(name, overrides, varied, compose(profile, overrides))


def _of_one(error: ParamsError) -> str:
    """What is wrong, without the name of the file that the parameters would be merged over."""
    first, *problems = str(error).splitlines()
    return "; ".join(problem.strip() for problem in problems) or first


def _told(choice: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in flatten(choice).items()) or "no change"


def _ensure_different(children: Sequence[Child], problems: list[str]) -> None:
    """Equal experiments would do the same work at the same time, and stand in the table as if they were two."""
    first: dict[Params, Child] = {}
    for child in children:
        same = first.setdefault(child.params, child)
        if same is not child:
            problems.append(f"  {_told(child.varied)}: the same experiment as {_told(same.varied)}")
