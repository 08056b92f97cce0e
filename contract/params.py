"""The parameters of an experiment, and the only reader and writer of params.yaml.

One section a stage. Every number stands in params.yaml, none has a default here, so that DVC sees each of them; unknown
keys, wrong types and combinations that cannot work are refused before anything runs.
"""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from contract.errors import StageError
from contract.sections import (
    LEAST_COMPARED_IMAGES,
    DownloadParams,
    EvaluateParams,
    PreprocessParams,
    ReferenceParams,
    RegisterParams,
    SampleParams,
    Section,
    TrainParams,
)

PARAMS_FILE = Path("params.yaml")
PROFILES_FOLDER = Path("profiles")

OF_OTHER_SECTIONS = {
    "reference": ("evaluate.enabled",),
    "evaluate": ("reference",),
    "register": ("profile", "preprocess.image_size", "sample.weights"),
}
"""What a stage reads beside its own section; dvc.yaml names the same. Samples' features are extracted as the real
images' are, and those only where figures are wanted; a registered version names what it is."""


EVALUATION = ("reference", "sample", "evaluate")
"""The sections that change neither the dataset nor the model: those of an evaluation without training."""


class ParamsError(StageError):
    """Parameters cannot be used; the message names what was got and what is allowed."""


class Params(Section):
    """One experiment."""

    profile: Annotated[str, Field(pattern="^[a-z0-9-]{1,60}$")]
    """the profile that this experiment started from"""
    download: DownloadParams
    preprocess: PreprocessParams
    reference: ReferenceParams
    train: TrainParams
    sample: SampleParams
    evaluate: EvaluateParams
    register_: Annotated[RegisterParams, Field(alias="register")]

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        size, multiple = self.preprocess.image_size, self.train.unet.downsampling
        if size % multiple != 0:
            raise ValueError(
                f"preprocess.image_size={size} must be a multiple of {multiple}, since train.unet.widths has "
                f"{len(self.train.unet.widths)} levels"
            )
        known = ["averaged", "raw", *(f"averaged_{decay}" for decay in self.train.extra_ema_decays)]
        known += ["best"] if self.train.evaluate_every else []
        if self.sample.weights not in known:
            raise ValueError(
                f"sample.weights must be one of {', '.join(known)}, since train.extra_ema_decays is "
                f"{list(self.train.extra_ema_decays)} and train.evaluate_every is "
                f"{self.train.evaluate_every or 'null'}, got {self.sample.weights!r}"
            )
        if self.sample.num_sampling_steps > self.train.diffusion.num_timesteps:
            raise ValueError(
                f"sample.num_sampling_steps={self.sample.num_sampling_steps} must not exceed "
                f"train.diffusion.num_timesteps={self.train.diffusion.num_timesteps}"
            )
        if self.evaluate.enabled and self.sample.num_images < LEAST_COMPARED_IMAGES:
            raise ValueError(
                f"sample.num_images={self.sample.num_images} must be at least {LEAST_COMPARED_IMAGES}, since "
                "evaluate.enabled is true"
            )
        return self

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        classes, scale = self.sample.classes, self.sample.guidance_scale
        if not self.train.class_conditional and classes is not None:
            raise ValueError(
                f"sample.classes must be null, since train.class_conditional is false, got {list(classes)}; set "
                "train.class_conditional to true to train a model that can be asked for classes"
            )
        if not self.train.class_conditional and scale != 1.0:
            raise ValueError(f"sample.guidance_scale must be 1, since train.class_conditional is false, got {scale}")
        if self.train.label_dropout == 0.0 and scale != 1.0:
            raise ValueError(
                f"sample.guidance_scale={scale} needs train.label_dropout above 0: without it no image is learnt "
                "without its class"
            )
        _require_known_classes(classes, self.download.dataset)
        return self

    def section(self, stage: str) -> dict[str, Any]:
        """The parameters of one stage, nested, as plain values."""
        sections: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        return dict(sections[stage])

    def read_by(self, stage: str) -> dict[str, Any]:
        """The parameters that shape the results of one stage, by their dotted names: what DVC records with them."""
        places = (stage, *OF_OTHER_SECTIONS.get(stage, ()))
        inside = tuple(f"{place}." for place in places)
        named = flat(self.model_dump(mode="json", by_alias=True))
        return {name: value for name, value in named.items() if name in places or name.startswith(inside)}


def read_params(path: Path = PARAMS_FILE) -> Params:
    """The experiment in force.

    Raises:
        ParamsError: the file is missing, is not YAML, or holds parameters that cannot be used.
    """
    return _validated(_read_yaml(path), str(path))


def list_profiles(folder: Path = PROFILES_FOLDER) -> list[str]:
    """The names of the saved experiments."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def activate(profile: str | None, overrides: Mapping[str, Any], path: Path = PARAMS_FILE) -> Params:
    """Put an experiment in force: a saved profile, or what `path` holds, with `overrides` merged over it.

    The file is written only where something changes, whole or not at all; comments stay.

    Args:
        profile: a name in profiles/; None keeps the active experiment.
        overrides: nested, as in params.yaml, holding only what differs.
        path: the file to write.

    Raises:
        ParamsError: the profile is unknown, or the result cannot be used. The file is then as it was.
    """
    document, params = _composed(profile, overrides, path)
    if profile is None and document == _read_yaml(path):
        return params  # dumping it would only lay it out anew
    buffer = io.StringIO()
    _yaml().dump(document, buffer)
    if not path.is_file() or path.read_text() != buffer.getvalue():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(buffer.getvalue())
        temporary.replace(path)
    return params


def composed(profile: str | None, overrides: Mapping[str, Any], path: Path = PARAMS_FILE) -> Params:
    """What `activate` would put in force; nothing is written.

    Raises:
        ParamsError: as there.
    """
    return _composed(profile, overrides, path)[1]


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """Nested overrides from "train.num_steps=100"-like words, their values read as YAML.

    Raises:
        ParamsError: a word is not of the form NAME=VALUE, its value is not YAML, or two words contradict each other.
    """
    overrides: dict[str, Any] = {}
    before: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ParamsError(f"a parameter is set by NAME=VALUE, such as train.num_steps=100, got {assignment!r}")
        for earlier, words in before.items():
            if earlier.startswith(f"{name}."):
                raise ParamsError(f"{assignment!r} replaces the section that {words!r} sets a part of; give it first")
        before[name] = assignment
        *sections, leaf = name.split(".")
        place = overrides
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ParamsError(f"{assignment!r} sets a part of what was set whole before it")
        try:
            place[leaf] = YAML(typ="safe").load(value)
        except YAMLError as error:
            raise ParamsError(f"the value of {assignment!r} is not YAML: {error}") from None
    return overrides


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"seed": 0}} as {"train.seed": 0}; lists stay values."""
    leaves: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def _partial(model: type[BaseModel]) -> type[BaseModel]:
    """The same model with every field optional: what a form may leave out."""
    fields: dict[str, Any] = {}
    drop_untouched: Any = model_validator(mode="before")(_without_untouched(model))
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _partial(kind)
        elif field.metadata:
            kind = Annotated[kind, *field.metadata]
        help_text = Field(
            default=None, alias=field.alias, description=field.description, json_schema_extra=_with_bounds_in_words
        )
        fields[name] = (kind | None, help_text)
    return create_model(
        f"{model.__name__}Override",
        __config__=ConfigDict(extra="forbid"),
        __validators__={"drop_untouched": drop_untouched},
        **fields,
    )


def _with_bounds_in_words(schema: dict[str, Any]) -> None:
    """Prefect's form shows a field's description, not its bounds."""
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{words[key]} {kind[key]}" for kind in schema.get("anyOf", []) for key in words if key in kind]
    if bounds:
        schema["description"] = f"{schema['description']} ({', '.join(bounds)})"


def _without_untouched(model: type[BaseModel]) -> Callable[[Any], Any]:
    """Drops what Prefect's form adds: of a section in which one field was filled in, it gives null for all others.

    A null where `model` has none says that a form is speaking; otherwise nulls are meant, and stay.
    """
    never_null = {field.alias or name for name, field in model.model_fields.items() if not _takes_null(field)}

    def drop(values: Any) -> Any:
        if isinstance(values, dict) and any(values.get(name, 0) is None for name in never_null):
            return {name: value for name, value in values.items() if value is not None}
        return values

    return drop


def _takes_null(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)


if TYPE_CHECKING:

    class Overrides(BaseModel):
        """Parameters that differ from the profile: the bounds and help of `Params`, every field optional."""

    class EvaluationOverrides(BaseModel):
        """The sections of `Overrides` that a trained model leaves open."""
else:
    Overrides = _partial(Params)
    EvaluationOverrides = create_model(
        "EvaluationOverride",
        __config__=ConfigDict(extra="forbid"),
        **{name: (Overrides.model_fields[name].annotation, Overrides.model_fields[name]) for name in EVALUATION},
    )


def _composed(profile: str | None, overrides: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], Params]:
    source = path if profile is None else path.parent / PROFILES_FOLDER / f"{profile}.yaml"
    if profile is not None and not source.is_file():
        known = ", ".join(list_profiles(source.parent)) or "none"
        raise ParamsError(f"unknown profile {profile!r}; choose one of: {known}")
    document = _read_yaml(source)
    _merge(document, overrides)
    return document, _validated(document, f"{source} with what was set" if overrides else str(source))


def _require_known_classes(asked: Sequence[str | int] | None, dataset: str) -> None:
    """Before hours of training, where the dataset tells its classes without being read.

    Raises:
        ValueError: a class is unknown.
    """
    if asked is None:
        return
    # Imports torch, which the flows would wait for in vain.
    from ddpm.classes import ImageClass, labels_of
    from stages.datasets import DATASETS

    names = DATASETS[dataset].class_names
    if names is not None:
        try:
            labels_of(asked, [ImageClass(number, name) for number, name in names.items()])
        except ValueError as error:
            raise ValueError(f"sample.classes: {error}") from None


def _validated(document: Mapping[str, Any], source: str) -> Params:
    try:
        # Through JSON, where strictness knows that a list is the only way to write a tuple. It has no dates: a source
        # named 2024-01-01 is a name.
        return Params.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        problems = [f"  {_described(problem)}" for problem in error.errors()]
        raise ParamsError("\n".join([f"{source} cannot be used:", *problems])) from None


def _described(problem: ErrorDetails) -> str:
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "value_error":  # ours, and it names everything
        return f"{place}: {problem['ctx']['error']}".removeprefix(": ")
    if problem["type"] == "missing":
        return f"{place} is missing"
    if problem["type"] == "extra_forbidden":
        return f"{place} is not a parameter"
    return f"{place}: {problem['msg']}, got {problem['input']!r}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = _yaml().load(path.read_text())
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing; `git checkout {path}` brings it back") from None
    except YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ParamsError(f"{path} must hold sections of parameters, got {type(document).__name__}")
    return document


def _yaml() -> YAML:
    # YAML 1.2: 1e-3 is a number. Round-trip: comments survive an override.
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _merge(document: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(document.get(name), dict):
            _merge(document[name], value)
        else:
            document[name] = value
