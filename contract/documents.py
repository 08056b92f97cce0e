"""YAML files as people and DVC write them, and the results of stages, read with one clear error."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from contract.errors import ParamsError, StageError


def read_mapping(path: Path, yaml: YAML | None = None) -> dict[str, Any]:
    """Return what a YAML file holds by name.

    Args:
        path: a file in UTF-8, whatever the language of the system.
        yaml: the reader, if comments and quotes have to survive.

    Raises:
        ParamsError: the file is missing or cannot be read, is not UTF-8, is not YAML, or holds no names.
    """
    try:
        document = (yaml or YAML(typ="safe")).load(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing; `git checkout {path}` brings it back") from None
    except OSError as error:
        raise ParamsError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise ParamsError(f"{path} is not UTF-8: line {line} holds the byte 0x{byte:02x}; save it as UTF-8") from None
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: such as a number of 5,000 digits
        raise ParamsError(f"{path} is not YAML: {explain_yaml(error)}") from None
    if not isinstance(document, dict):
        found = "an empty file" if document is None else type(document).__name__
        raise ParamsError(f"{path} must hold sections by name, got {found}; `git checkout {path}` brings it back")
    return document


def explain_yaml(error: Exception) -> str:
    """Describe an error of the YAML reader in one line."""
    if not isinstance(error, MarkedYAMLError):
        return " ".join(str(error).split())
    problem = error.problem or error.context or "it cannot be read"
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)


@contextmanager
def explain_damage(path: Path) -> Iterator[Path]:
    """Yield the path of an earlier stage's output, to be read in the block.

    Raises:
        StageError: it cannot be understood, such as half of a file.
    """
    try:
        yield path
    except (ValueError, EOFError) as error:
        raise StageError(f"{path} is damaged, {error}: `dvc checkout --force {path}` brings it back") from None


def read_result(path: Path) -> dict[str, Any]:
    """Return what a stage wrote as JSON.

    Raises:
        StageError: it cannot be understood, such as half of a file.
    """
    with explain_damage(path):
        result = json.loads(path.read_text())
        if not isinstance(result, dict):
            raise ValueError(f"it holds a {type(result).__name__}, not values by name")
    return result
