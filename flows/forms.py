"""The parameters as a form of Prefect shows them: every field optional, with bounds, choices and help texts."""

from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from contract.schema import is_section, read_help_texts
from contract.sections import Params
from ddpm.config import field_hints

_CONFIG = ConfigDict(extra="forbid")

_ALIASES = {"register": "register_"}
"""Names of fields where pydantic's models use the parameter's name for something else."""

_BOUNDS_IN_WORDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def _build_form(section: type) -> type[BaseModel]:
    """Return a model with the fields of `section`, each of which may be left out."""
    help_texts = read_help_texts(section)
    fields: dict[str, Any] = {}
    for name, hint in field_hints(section).items():
        kind: Any = _build_form(hint) if is_section(hint) else hint
        field = Field(
            default=None,
            alias=name if name in _ALIASES else None,
            description=help_texts.get(name),
            json_schema_extra=_put_bounds_in_words,
        )
        fields[_ALIASES.get(name, name)] = (kind | None, field)
    validators = {"drop_untouched": _drop_untouched(section)}
    return create_model(f"{section.__name__}Override", __config__=_CONFIG, __validators__=validators, **fields)


def _put_bounds_in_words(schema: dict[str, Any]) -> None:
    """Add the bounds of a field to its description, which is all that Prefect's form shows of it."""
    kinds = schema.get("anyOf", [])
    bounds = [f"{words} {kind[key]}" for kind in kinds for key, words in _BOUNDS_IN_WORDS.items() if key in kind]
    if bounds:
        schema["description"] = f"{schema['description']} ({', '.join(bounds)})"


def _drop_untouched(section: type) -> Any:
    """Return a validator that drops the nulls which Prefect's form sends for fields that were left alone.

    For a section in which one field was filled in, the form sends every other field as null. Values come from a form
    where all fields of the section are there and some that have no null are null; its nulls are dropped. Everywhere
    else a null is meant: it stays, and is refused where the parameter has none.
    """
    hints = field_hints(section)
    never_null = [name for name, hint in hints.items() if NoneType not in get_args(hint)]

    def drop(values: Any) -> Any:
        is_from_form = isinstance(values, dict) and hints.keys() <= values.keys()
        if is_from_form and any(values[name] is None for name in never_null):
            return {name: value for name, value in values.items() if value is not None}
        return values

    return model_validator(mode="before")(drop)


if TYPE_CHECKING:

    class Overrides(BaseModel):
        """Parameters that differ from the profile: the bounds and help of `Params`, every field optional."""

    class EvaluationOverrides(BaseModel):
        """The sections of `Overrides` that keep the dataset and the model."""
else:
    Overrides = _build_form(Params)
    _FIELDS = {name: Overrides.model_fields[name] for name in ("reference", "sample", "evaluate")}
    EvaluationOverrides = create_model(
        "EvaluationOverride", __config__=_CONFIG, **{name: (field.annotation, field) for name, field in _FIELDS.items()}
    )
