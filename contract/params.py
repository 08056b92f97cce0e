"""Reading and writing params.yaml: the experiment in force, and the saved experiments of profiles/.

A profile holds what differs from the published setting, profiles/flowers102.yaml. params.yaml is complete: every
parameter stands in it, so that DVC sees each of them. Unknown names, wrong types and combinations that cannot work are
refused before anything runs.
"""

import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML

from contract.documents import read_mapping
from contract.errors import ParamsError
from contract.nesting import merge
from contract.paths import PARAMS_FILE, PROFILES_FOLDER, list_profiles
from contract.schema import find_missing, suggest
from contract.sections import Params
from ddpm.files import atomic_path

__all__ = ["Params", "ParamsError", "activate", "compose", "read_params", "validate_params"]

BASE_PROFILE = "flowers102"
"""Name of the complete profile from which the others differ: the published setting."""


def read_params(path: Path = PARAMS_FILE) -> Params:
    """Return the experiment that a complete file holds.

    Raises:
        ParamsError: the file is missing, is not YAML, or holds parameters that cannot be used.
    """
    return validate_params(read_mapping(path, _yaml()), str(path))


def activate(profile: str | None, overrides: Mapping[str, Any], path: Path = PARAMS_FILE) -> Params:
    """Put an experiment in force: a saved profile, or what `path` holds, with `overrides` merged over it.

    The file is written only where something changes, whole or not at all. Its comments stay; a profile brings the
    comment at its head.

    Args:
        profile: a name in profiles/; None keeps the active experiment.
        overrides: nested, as in params.yaml, holding only what differs.
        path: the file to write; profiles/ lies beside it.

    Raises:
        ParamsError: the profile is unknown, or the result cannot be used. The file is then as it was.
    """
    document, params = _compose(profile, overrides, path)
    if profile is None and document == read_mapping(path, _yaml()):
        return params  # the layout of a file that was written by hand stays until a value changes
    buffer = io.StringIO()
    _yaml().dump(document, buffer)
    if not path.is_file() or path.read_text("utf-8") != buffer.getvalue():
        with atomic_path(path) as temporary:
            temporary.write_text(buffer.getvalue(), "utf-8")
    return params


def compose(profile: str | None, overrides: Mapping[str, Any], path: Path = PARAMS_FILE) -> Params:
    """Return the experiment that `activate` would put in force; write nothing.

    Raises:
        ParamsError: as in `activate`.
    """
    return _compose(profile, overrides, path)[1]


def validate_params(document: Mapping[str, Any], source: str) -> Params:
    """Return the parameters that a complete document holds.

    Args:
        document: nested, as in params.yaml.
        source: name of the document in the error.

    Raises:
        ParamsError: the parameters cannot be used; the message lists every problem.
    """
    problems = [f"{name} is missing" for name in find_missing(document)]
    try:
        # Through JSON, where strictness knows that a list is the only way to write a tuple. It has no dates: a source
        # named 2024-01-01 is a name.
        text = json.dumps(document, default=str)
    except (TypeError, ValueError, RecursionError) as error:  # a list as a name, a list within itself
        raise ParamsError(f"{source} cannot be used: {error}") from None
    try:
        params = _adapter().validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        # While parameters are missing, defaults of the library stand in for them: combinations are not judged.
        skipped = {"missing", "value_error"} if problems else {"missing"}
        found = [problem for problem in error.errors() if problem["type"] not in skipped]
        problems += [_describe(problem) for problem in found if not _is_said_elsewhere(problem)]
    if problems:
        raise ParamsError("\n  ".join([f"{source} cannot be used:", *problems]))
    return params


def _compose(profile: str | None, overrides: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], Params]:
    source = path if profile is None else path.parent / PROFILES_FOLDER / f"{profile}.yaml"
    document = read_mapping(path, _yaml()) if profile is None else _read_profile(source)
    merge(document, overrides)
    return document, validate_params(document, f"{source} with what was set" if overrides else str(source))


def _read_profile(path: Path) -> dict[str, Any]:
    """Return a profile, completed by the base where it is not complete itself, under its own head comment."""
    if not path.is_file():
        known = ", ".join(list_profiles(path.parent)) or "none"
        raise ParamsError(f"unknown profile {path.stem!r}; choose one of: {known}")
    profile = read_mapping(path, _yaml())
    if not any(find_missing(profile)):
        return profile
    document = read_mapping(path.with_name(f"{BASE_PROFILE}.yaml"), _yaml())
    merge(document, {"profile": path.stem} | profile)
    document.ca.comment = profile.ca.comment  # type: ignore[attr-defined]
    return document


@cache
def _adapter() -> TypeAdapter[Params]:
    return TypeAdapter(Params)


def _is_said_elsewhere(problem: ErrorDetails) -> bool:
    """Return whether a problem repeats another: a class is no int if it is no str, a list of bad items is not empty."""
    return problem["loc"][-1:] == ("int",) or (problem["type"] == "too_short" and bool(problem["input"]))


def _describe(problem: ErrorDetails) -> str:
    place = ".".join(map(str, problem["loc"]))
    if place.endswith(".str"):  # the two kinds of a class
        given = f"{place.removesuffix('.str')}: must be a name or a whole number, got {problem['input']!r}"
        return f"{given}; write a name that looks like something else in quotes"
    if problem["type"] == "value_error":  # raised by a section, and complete
        return f"{place}: {problem['ctx']['error']}".removeprefix(": ")
    if problem["type"] == "unexpected_keyword_argument":
        return f"{place} is not a parameter{suggest(place)}"
    return f"{place}: {problem['msg']}, got {problem['input']!r}"


def _yaml() -> YAML:
    # YAML 1.2: 1e-3 is a number. Round-trip: comments survive an override.
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml
