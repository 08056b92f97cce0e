"""Spell out the trials of a sweep, a grid or a list of overrides, and check all of them before any starts."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contract.assignments import load_value
from contract.errors import FlowersError
from contract.nesting import flatten, nest
from contract.params import Params, ParamsError, compose

MAX_TRIALS = 256
"""Maximum size of a sweep; more is probably a mistake."""


@dataclass(frozen=True)
class Trial:
    """One experiment of a sweep."""

    name: str
    """name of its flow run: the sweep's, and a number from 1"""
    overrides: dict[str, Any]
    """parameters that differ from the profile, nested"""
    varied: dict[str, Any]
    """the parameters that the sweep varies, by dotted names"""
    params: Params
    """all parameters"""

    def __str__(self) -> str:
        return f"{self.name} ({_list_values(self.varied)})"


def plan_trials(
    sweep: str,
    profile: str | None,
    shared: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    overrides: Sequence[Mapping[str, Any]],
) -> list[Trial]:
    """Return the trials of a sweep, in order, each checked.

    Args:
        sweep: name of the sweep.
        profile: a saved experiment; None takes params.yaml as it is.
        shared: what all trials change in the profile, nested.
        grid: dotted names of parameters, each with its values, used in every combination.
        overrides: what each trial changes, nested or dotted.

    Raises:
        FlowersError: there is nothing to vary, or too much, or some of the trials cannot be used.
        ParamsError: what all trials share cannot be used.
    """
    if bool(grid) == bool(overrides):
        got = "both" if grid else "neither"
        raise FlowersError(f"a sweep takes a grid or a list of overrides, got {got}")
    compose(profile, shared)
    choices = list(itertools.islice(combine(grid) if grid else iter(overrides), MAX_TRIALS + 1))
    if len(choices) > MAX_TRIALS:
        raise FlowersError(f"a sweep starts at most {MAX_TRIALS} trials; give fewer values")
    trials, problems = [], []
    for number, choice in enumerate(choices, start=1):
        try:
            varied = flatten(nest(choice))
            changes = nest(flatten(shared) | varied)
            trials.append(Trial(f"{sweep}-{number}", changes, varied, compose(profile, changes)))
        except ParamsError as error:
            problems.append(f"  {_list_values(flatten(choice))}: {_strip_source(error)}")
    first: dict[Params, Trial] = {}
    for trial in trials:  # two equal ones would do the same work at the same time
        same = first.setdefault(trial.params, trial)
        if same is not trial:
            problems.append(f"  {_list_values(trial.varied)}: the same experiment as {_list_values(same.varied)}")
    if problems:
        raise FlowersError("\n".join([f"{len(problems)} of {len(choices)} trials cannot be used:", *problems]))
    return trials


def combine(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield every combination of the values; those of the last name change fastest.

    Raises:
        FlowersError: a name has no list of values.
    """
    for name, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise FlowersError(
                f"a grid gives each parameter a list of values, such as [0.001, 0.002]: {name}={values!r}"
            )
    yield from (dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values()))


def parse_overrides_list(text: str | None) -> list[dict[str, Any]]:
    """Return the overrides of each trial that a text such as "[{train.seed: 1}, {train.seed: 2}]" spells.

    Raises:
        FlowersError: the text is not a list of mappings.
    """
    try:
        parsed = [] if text is None else load_value(text)
    except ParamsError as error:
        raise FlowersError(f"--overrides: {error}") from None
    if not isinstance(parsed, list) or not all(isinstance(one, dict) for one in parsed):
        raise FlowersError(f"--overrides takes a list of mappings, such as [{{train.seed: 1}}], got {text!r}")
    return parsed


def _strip_source(error: ParamsError) -> str:
    """Return what is wrong, without the name of the file that the parameters would be merged over."""
    first, *problems = str(error).splitlines()
    return "; ".join(problem.strip() for problem in problems) or first


def _list_values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "no change"
