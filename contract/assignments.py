"""Parameters set in words, such as train.num_steps=100: the values of `--set` and `--grid`."""

from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from contract.errors import ParamsError
from contract.nesting import flatten, nest
from contract.schema import list_types, suggest


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """Return nested overrides from words such as "train.num_steps=100".

    The last value of a parameter counts. That of a text parameter is taken as it stands, and "null" or nothing as null
    where that is allowed; every other value is read as YAML.

    Raises:
        ParamsError: a word is not of the form NAME=VALUE, names no parameter, has a value that is not YAML, or
            contradicts another word.
    """
    types = list_types()
    return _parse(assignments, lambda name, value: _parse_value(value, types[name]))


def parse_grid(assignments: list[str]) -> dict[str, Any]:
    """Return the lists of values from words such as "train.seed=[0, 1]", by dotted name; the lists are YAML.

    Raises:
        ParamsError: as in `parse_overrides`.
    """
    return flatten(_parse(assignments, lambda _name, value: _load_yaml(value)))


def _parse(assignments: list[str], parse: Callable[[str, str], Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ParamsError(f"a parameter is set by NAME=VALUE, such as train.num_steps=100, got {assignment!r}")
        if name not in list_types():
            raise ParamsError(f"{name} is not a parameter{suggest(name)}")
        try:
            values |= flatten({name: parse(name, value)})
        except YAMLError as error:
            raise ParamsError(f"the value of {assignment!r} is not YAML: {error}") from None
    return nest(values)


def _parse_value(value: str, hint: Any) -> Any:
    schema = TypeAdapter(hint).json_schema()
    kinds = {kind.get("type") for kind in schema.get("anyOf", [schema])}
    if "null" in kinds and value in ("", "null"):
        return None
    return value if kinds <= {"string", "null"} else _load_yaml(value)


def _load_yaml(value: str) -> Any:
    return YAML(typ="safe").load(value)
