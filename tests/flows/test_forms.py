"""The parameters in Prefect's form: help, bounds, and what the form sends."""

import dataclasses

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import TypeAdapter, ValidationError

from contract.sections import Params, TrainParams
from flows.evaluate_only import evaluate_only
from flows.forms import EvaluationOverrides, Overrides
from flows.pipeline import pipeline
from flows.sweep import sweep


def given(form):
    return form.model_dump(by_alias=True, exclude_unset=True)


def names(section):
    return [field.name for field in dataclasses.fields(section)]


def test_the_form_has_every_parameter_with_its_bounds_and_choices():
    params, overrides = leaves(TypeAdapter(Params).json_schema()), leaves(Overrides.model_json_schema())
    assert all(leaf.pop("description") for leaf in overrides.values())
    assert overrides == params and len(params) > 80


def test_the_form_describes_bounds_in_words():
    fields = Overrides.model_json_schema()["$defs"]["TrainParamsOverride"]["properties"]
    assert fields["num_steps"]["description"].endswith("training (at least 1, at most 100000000)")
    assert fields["gradient_clip"]["description"].endswith("null does not clip (above 0)")
    assert fields["random_flips"]["description"] == "mirror training images left-right at random"


@pytest.mark.parametrize(
    ("flow", "fields"),
    [
        (pipeline, {"profile", "params", "workspace"}),
        (evaluate_only, {"revision", "params"}),
        (sweep, {"profile", "grid", "overrides", "params", "name", "max_concurrent"}),
    ],
)
def test_every_field_of_a_flows_form_is_explained_and_may_be_left_out(flow, fields):
    schema = parameter_schema(flow)
    assert {name for name, field in schema.properties.items() if field.get("description")} == fields
    assert schema.required == []


def test_the_form_of_a_sweep_bounds_its_fields():
    fields = parameter_schema(sweep).properties
    assert fields["max_concurrent"]["minimum"] == 1 and fields["max_concurrent"]["maximum"] == 64
    assert any(kind.get("pattern") for kind in fields["name"]["anyOf"])
    assert any("quickstart" in kind.get("enum", []) for kind in fields["profile"]["anyOf"])


def test_fields_that_were_left_alone_in_the_form_are_left_out():
    sections = dict.fromkeys(names(Params)) | {"train": dict.fromkeys(names(TrainParams)) | {"num_steps": 7}}
    assert given(Overrides(**sections)) == {"train": {"num_steps": 7}}
    assert given(Overrides()) == {}


def test_a_null_outside_of_the_form_is_meant():
    assert given(Overrides(train={"gradient_clip": None})) == {"train": {"gradient_clip": None}}
    # One null that is not allowed does not take the others with it; the parameters refuse it by name.
    both = {"train": {"gradient_clip": None, "seed": None}}
    assert given(Overrides(**both)) == both


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"num_steps": 0}},
        {"train": {"unet": {"widths": [0]}}},
        {"train": {"number_of_steps": 5}},
        {"register_": {"enabled": False}},
        {"download": {"archive_md5": "short"}},
    ],
)
def test_the_form_refuses_what_the_parameters_would(values):
    with pytest.raises(ValidationError):
        Overrides(**values)


def test_the_form_of_an_evaluation_keeps_dataset_and_model():
    assert list(EvaluationOverrides.model_fields) == ["reference", "sample", "evaluate"]
    assert given(EvaluationOverrides(sample={"seed": 3})) == {"sample": {"seed": 3}}
    for values in ({"train": {"num_steps": 5}}, {"sample": {"eta": 1.5}}, {"evaluate": {"enable": True}}):
        with pytest.raises(ValidationError):
            EvaluationOverrides(**values)


def leaves(schema):
    """Bounds and choices of each parameter, by its dotted name; whether it may be null is left out."""

    def resolve(node):
        node = {key: value for key, value in node.items() if key not in {"title", "default"}}
        if "$ref" in node:
            node |= schema["$defs"][node.pop("$ref").rsplit("/", 1)[1]]
        choices = [choice for choice in node.pop("anyOf", []) if choice != {"type": "null"}]
        return resolve(node | choices[0]) if choices else node

    def walk(node, prefix):
        node = resolve(node)
        if "properties" not in node:
            return {prefix: node}
        found = {}
        for name, child in node["properties"].items():
            found |= walk(child, f"{prefix}.{name}")
        return found

    return walk(schema, "")
