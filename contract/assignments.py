"""Parameters set in words, such as train.num_steps=100: the values of `--set` and `--grid`."""

import json
import re
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.tokens import (
    AliasToken,
    AnchorToken,
    DirectiveToken,
    DocumentEndToken,
    DocumentStartToken,
    KeyToken,
    ScalarToken,
    TagToken,
    Token,
)

from contract.documents import explain_yaml
from contract.errors import ParamsError
from contract.nesting import flatten, nest
from contract.schema import is_section, list_types, suggest

_DROPPED: dict[type[Token], str] = {
    TagToken: "a tag (!)",
    AnchorToken: "an anchor (&)",
    AliasToken: "an alias (*)",
    DirectiveToken: "a directive (%)",
    DocumentStartToken: "the mark of a document (---)",
    DocumentEndToken: "the mark of a document (...)",
}
"""Parts of YAML that are no part of a value, and what people more likely mean as text."""

_HINT = """put text into quotes, as in 'sample.classes=["Batch #2", 54]'"""


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """Return nested overrides from words such as "train.num_steps=100".

    The last value of a parameter counts. That of a text parameter is taken as it stands, but for quotes around it, and
    "null" or nothing as null where that is allowed; every other value is read as YAML.

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
    types = list_types()
    return flatten(_parse(assignments, lambda name, value: _parse_grid_values(value, types[name])))


def load_value(text: str, *, is_list_of_text: bool = False, may_hold_text: bool = False) -> Any:
    """Return the value that a text in YAML spells.

    Args:
        text: numbers, words, lists and mappings.
        is_list_of_text: take everything in the list as text, as it stands.
        may_hold_text: refuse what could mean a text as well as something else, such as the class 007.

    Raises:
        ParamsError: it is not YAML, or a part of it would be dropped or become something else.
    """
    try:
        tokens = list(YAML(typ="safe", pure=True).scan(text))
        value = YAML(typ="base" if is_list_of_text else "safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise ParamsError(f"{text!r} is not YAML: {explain_yaml(error)}; {_HINT}") from None
    _refuse_dropped(text, tokens, is_value=is_list_of_text or may_hold_text)
    if not is_list_of_text:
        _refuse_unclear(text, tokens, may_hold_text=may_hold_text)
    return value


def _parse(assignments: list[str], parse: Callable[[str, str], Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ParamsError(f"a parameter is set by NAME=VALUE, such as train.num_steps=100, got {assignment!r}")
        if name not in list_types():
            raise ParamsError(f"{name} is not a parameter{suggest(name)}")
        try:
            parsed = parse(name, value)
        except ParamsError as error:
            raise ParamsError(f"the value of {name}, {error}") from None
        values |= flatten({name: parsed})
    return nest(values)


def _parse_value(value: str, hint: Any) -> Any:
    kinds = _list_kinds(hint)
    if "null" in kinds and value in ("", "null"):
        return None
    if kinds <= {"string", "null"}:
        is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        return load_value(value) if is_quoted else value
    return load_value(value, may_hold_text=_may_hold_text(hint))


def _parse_grid_values(value: str, hint: Any) -> Any:
    kinds = _list_kinds(hint)
    if not kinds <= {"string", "null"}:
        return load_value(value, may_hold_text=_may_hold_text(hint))
    words = load_value(value, is_list_of_text=True)
    if "null" in kinds and isinstance(words, list):
        return [None if word in ("", "null") else word for word in words]
    return words


def _list_kinds(hint: Any) -> set[str | None]:
    schema = TypeAdapter(hint).json_schema()
    return {kind.get("type") for kind in schema.get("anyOf", [schema])}


def _may_hold_text(hint: Any) -> bool:
    return not is_section(hint) and '"string"' in json.dumps(TypeAdapter(hint).json_schema())


def _is_clear(word: str) -> bool:
    """Return whether a word without quotes means one thing: a text, an integer as Python writes it, or null."""
    value = YAML(typ="safe", pure=True).load(word)
    return value is None or isinstance(value, str) or (isinstance(value, int) and str(value) == word)


def _refuse_dropped(text: str, tokens: list[Token], *, is_value: bool) -> None:
    parts = [_DROPPED[type(token)] for token in tokens if type(token) in _DROPPED]
    if "#" in _remove(tokens, text):
        parts.append("a comment (#)")
    if is_value and any(isinstance(token, KeyToken) for token in tokens):
        parts.append("a mapping (:)")
    if parts:
        raise ParamsError(f"{text!r} holds {parts[0]}, which is no part of this value; {_HINT}")


def _refuse_unclear(text: str, tokens: list[Token], *, may_hold_text: bool) -> None:
    for word in [token.value for token in tokens if isinstance(token, ScalarToken) and token.plain]:
        if re.fullmatch(r"[-+]?0\w+", word) or (may_hold_text and not _is_clear(word)):
            raise ParamsError(
                f"{text!r} holds {word}, which may mean several things; write a number as 7 or 0.5, and {_HINT}"
            )


def _remove(tokens: list[Token], text: str) -> str:
    """Return the text between the tokens."""
    end, between = 0, []
    for token in tokens:
        between.append(text[end : token.start_mark.index])
        end = max(end, token.end_mark.index)
    return "".join([*between, text[end:]])
