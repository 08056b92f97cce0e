"""Parameters set in words, such as train.num_steps=100: the values of `--set` and `--grid`."""

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from contract.errors import ParamsError
from contract.nesting import flatten
from contract.schema import list_types, suggest


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """Return nested overrides from words such as "train.num_steps=100".

    The value of a text parameter is taken as it stands, and "null" or nothing as null where that is allowed; every
    other value is read as YAML.

    Raises:
        ParamsError: a word is not of the form NAME=VALUE, names no parameter, has a value that is not YAML, or
            contradicts another word.
    """
    types = list_types()
    return _nest(assignments, lambda name, value: _parse_value(value, types[name]))


def parse_grid(assignments: list[str]) -> dict[str, Any]:
    """Return the lists of values from words such as "train.seed=[0, 1]", by dotted name; the lists are YAML.

    Raises:
        ParamsError: as in `parse_overrides`.
    """
    return flatten(_nest(assignments, lambda _name, value: _load_yaml(value)))


def _nest(assignments: list[str], parse: Callable[[str, str], Any]) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    earlier: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ParamsError(f"a parameter is set by NAME=VALUE, such as train.num_steps=100, got {assignment!r}")
        for other, words in earlier.items():
            if other.startswith(f"{name}."):
                raise ParamsError(f"{assignment!r} replaces the section of which {words!r} sets a part; give it first")
        if name not in list_types():
            raise ParamsError(f"{name} is not a parameter{suggest(name)}")
        earlier[name] = assignment
        *sections, leaf = name.split(".")
        place = overrides
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ParamsError(f"{assignment!r} sets a part of a section that was set to {place!r} before")
        try:
            place[leaf] = parse(name, value)
        except YAMLError as error:
            raise ParamsError(f"the value of {assignment!r} is not YAML: {error}") from None
    return overrides


def _parse_value(value: str, hint: Any) -> Any:
    schema = TypeAdapter(hint).json_schema()
    kinds = {kind.get("type") for kind in schema.get("anyOf", [schema])}
    if "null" in kinds and value in ("", "null"):
        return None
    return value if kinds <= {"string", "null"} else _load_yaml(value)


def _load_yaml(value: str) -> Any:
    return YAML(typ="safe").load(value)
