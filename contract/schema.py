"""The schema of params.yaml, read from the sections: names, types and help texts of parameters."""

import ast
import difflib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from itertools import pairwise
from typing import Any

from contract.sections import Params
from ddpm.config import field_hints


def list_types(section: type = Params, prefix: str = "") -> dict[str, Any]:
    """Return the annotation of each parameter and section by its dotted name."""
    types: dict[str, Any] = {}
    for name, hint in field_hints(section).items():
        types[f"{prefix}{name}"] = hint
        if is_section(hint):
            types |= list_types(hint, f"{prefix}{name}.")
    return types


def is_section(hint: Any) -> bool:
    """Return whether the annotation is that of a section and not of a parameter."""
    return isinstance(hint, type) and is_dataclass(hint)


def find_missing(document: Mapping[str, Any], section: type = Params, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names that a document lacks; of a missing section only its own name."""
    for name, hint in field_hints(section).items():
        if name not in document:
            yield f"{prefix}{name}"
        elif is_section(hint) and isinstance(document[name], Mapping):
            yield from find_missing(document[name], hint, f"{prefix}{name}.")


def suggest(name: str) -> str:
    """Return words that name the parameters most like an unknown name, or nothing where none is like it."""
    close = difflib.get_close_matches(name, list_types(), n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def read_help_texts(section: type) -> dict[str, str]:
    """Return the help text of each field of a section: the string below it in the source, inherited ones included."""
    texts = {}
    for kind in reversed(section.__mro__):
        if is_dataclass(kind):
            [definition] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
            assert isinstance(definition, ast.ClassDef)
            for field, below in pairwise(definition.body):
                match field, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        texts[name] = inspect.cleandoc(text)
    return texts
