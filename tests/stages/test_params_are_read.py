"""Every parameter is read somewhere, and by its own stage alone.

Found in the sources by following names whose type is annotated: a parameter that nothing reads would be a promise that
nobody keeps, and one that another stage reads a dependency that DVC does not see.
"""

import ast
import dataclasses
from pathlib import Path

import pytest
from pydantic import BaseModel

from ddpm.checkpoint import DiffusionConfig
from ddpm.training_state import TrainingConfig
from ddpm.unet import UNetConfig
from stages.params import OF_OTHER_SECTIONS, Params

PROJECT = Path(__file__).parents[2]

OF_ANOTHER_STAGE = {
    "evaluate": {
        "train.num_steps",  # for MLflow alone: the step at which it shows the figures
        "reference.extractor", "reference.inception_weights", "reference.batch_size", "reference.num_processes",
    },
    "reference": {"evaluate.enabled"},
    "register": {"profile", "preprocess.image_size", "sample.weights"},
}  # fmt: skip

MODULES = {
    "reference": ("extraction",),
    "train": ("training_evaluation",),
    "evaluate": ("extraction",),
}
"""Modules beside a stage's own that read parameters for it."""


def section_types(model, prefix=""):
    """The sections by their dotted names; the whole has the empty one."""
    found = {prefix: model}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= section_types(field.annotation, f"{prefix}.{field.alias or name}".removeprefix("."))
    return found


SECTIONS = section_types(Params)
NAMES = {section.__name__: name for name, section in SECTIONS.items()}
CONFIGS = {config.__name__: config for config in (UNetConfig, DiffusionConfig, TrainingConfig)}
LEAVES = {
    f"{prefix}.{name}".removeprefix(".")
    for prefix, section in SECTIONS.items()
    for name, field in section.model_fields.items()
    if field.annotation not in SECTIONS.values()
}


def fields_of(kind):
    """The fields of a section or configuration, each with the name of its type where that is one, too."""
    if kind in CONFIGS:
        return {field.name: None for field in dataclasses.fields(CONFIGS[kind])}
    if kind in NAMES:
        fields = SECTIONS[NAMES[kind]].model_fields
        return {name: getattr(field.annotation, "__name__", None) for name, field in fields.items()}
    return {}


class Reads(ast.NodeVisitor):
    """Collects (type, field) of each read, and (type, constructor) of each `constructor(**section.model_dump())`."""

    def __init__(self, tree):
        self.reads, self.handed_on, self.types = set(), set(), {}
        # Classes of the module that hold a section, such as stages.train.Experiment.
        self.holders = {
            node.name: {
                line.target.id: self.annotated(line.annotation) for line in node.body if isinstance(line, ast.AnnAssign)
            }
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        }
        self.owner = None
        self.visit(tree)

    def annotated(self, annotation):
        names = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)] if annotation else []
        known = {*NAMES, *CONFIGS, *getattr(self, "holders", {})}
        return next((name for name in names if name in known), None)

    def type_of(self, node):
        if isinstance(node, ast.Name):
            return self.types.get(node.id)
        if isinstance(node, ast.BoolOp):
            return self.type_of(node.values[0])
        if isinstance(node, ast.Attribute):
            kind = self.type_of(node.value)
            return (fields_of(kind) or self.holders.get(kind, {})).get(node.attr)
        return None

    def visit_ClassDef(self, node):
        self.owner = node.name
        self.generic_visit(node)
        self.owner = None

    def visit_FunctionDef(self, node):
        if node.name == "__post_init__":
            return  # which checks every field, and uses none
        outer = self.types
        self.types = dict(outer)
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            self.types[argument.arg] = self.owner if argument.arg == "self" else self.annotated(argument.annotation)
        self.generic_visit(node)
        self.types = outer

    def visit_Assign(self, node):
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=True)
            for name, value in pairs:
                if isinstance(name, ast.Name):
                    self.types[name.id] = self.type_of(value)
                elif isinstance(name, ast.Attribute) and ast.unparse(name.value) == "self":
                    self.holders[self.owner][name.attr] = self.type_of(value)

    def visit_Attribute(self, node):
        kind = self.type_of(node.value)
        if node.attr in fields_of(kind) and isinstance(node.ctx, ast.Load):
            self.reads.add((kind, node.attr))
        self.generic_visit(node)

    def visit_Call(self, node):
        for keyword in node.keywords:
            dump = keyword.value
            if keyword.arg is None and isinstance(dump, ast.Call) and getattr(dump.func, "attr", "") == "model_dump":
                self.handed_on.add((self.type_of(dump.func.value), ast.unparse(node.func)))
        outer = self.types
        if getattr(node.func, "id", "") == "run_stage":  # it calls the functions that it is given with all parameters
            functions = [given for given in node.args if isinstance(given, ast.Lambda)]
            self.types = outer | {argument.arg: "Params" for each in functions for argument in each.args.args}
        self.generic_visit(node)
        self.types = outer


def reads_of(*paths):
    """The dotted names of the parameters that modules read, or hand on to a configuration of the library."""
    names = set()
    for path in paths:
        found = Reads(ast.parse(path.read_text()))
        names |= {f"{NAMES[kind]}.{name}" for kind, name in found.reads if kind in NAMES}
        for kind, constructor in found.handed_on:
            # A constructor refuses a field that it does not know, so that all are handed on.
            names |= {f"{NAMES[kind]}.{name}" for name in fields_of(kind) if name in fields_of(constructor)}
    return {name.removeprefix(".") for name in names} & LEAVES


def module_files(stage):
    files = [PROJECT / "stages" / f"{name}.py" for name in (stage, *MODULES.get(stage, ()))]
    return files + sorted((PROJECT / "stages" / "datasets").glob("*.py")) * (stage in {"download", "preprocess"})


# stages.train.training_config hands these on by their names, which tests/stages/test_train.py sees to.
BY_NAME = {f"train.{field.name}" for field in dataclasses.fields(TrainingConfig)} & LEAVES


def test_every_parameter_is_read():
    assert len(LEAVES) > 50
    read = reads_of(*(PROJECT / "stages").rglob("*.py")) | BY_NAME
    assert LEAVES - read == set()


@pytest.mark.parametrize("stage", ["download", "preprocess", "reference", "train", "sample", "evaluate", "register"])
def test_a_stage_reads_its_own_parameters_alone(stage):
    own = {name for name in LEAVES if name.startswith(f"{stage}.")}
    read = reads_of(*module_files(stage)) | (BY_NAME if stage == "train" else set())
    # Both stages share the datasets, whose fetching reads the parameters of download.
    shared = reads_of(*module_files("download")[1:]) if stage == "preprocess" else set()
    assert read - shared == own | OF_ANOTHER_STAGE.get(stage, set())


@pytest.mark.parametrize("stage", OF_OTHER_SECTIONS)
def test_what_a_stage_reads_of_other_sections_is_known_to_dvc(stage):
    known = OF_OTHER_SECTIONS[stage]
    unknown = {name for name in OF_ANOTHER_STAGE[stage] if not {name, name.partition(".")[0]} & set(known)}
    assert unknown <= {"train.num_steps"}


@pytest.mark.parametrize("config", CONFIGS)
def test_the_library_reads_what_is_handed_on(config):
    read = {
        name
        for path in (PROJECT / "ddpm").rglob("*.py")
        for kind, name in Reads(ast.parse(path.read_text())).reads
        if kind == config
    }
    assert set(fields_of(config)) - read == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(p: SampleParams):\n    return p.seed", {("SampleParams", "seed")}),
        (
            "def f(p: Params):\n    q, n = p.sample, 1\n    return [n for _ in range(q.seed)]",
            {("SampleParams", "seed")},
        ),
        ("class E:\n    w: TrainParams\ndef f(e: E):\n    return e.w.unet.widths", {("UNetParams", "widths")}),
        ("def f(p: SampleParams):\n    p = 3\n    return p.seed", set()),
        ("def f(p: Other):\n    return p.seed", set()),
        ("run_stage('sample', main, lambda p: p.sample.seed)", {("SampleParams", "seed")}),
        ("run_stage('sample', main)\np.sample.seed", set()),
        ("def f(p: SampleParams):\n    return p.model_dump()", set()),
        ("class UNetConfig:\n    def __post_init__(self):\n        self.widths", set()),
        ("class UNetConfig:\n    def size(self):\n        self.widths", {("UNetConfig", "widths")}),
        (
            "class E:\n    def __init__(self, p: SampleParams):\n        self.p = p\n"
            "    def f(self):\n        self.p.seed",
            {("SampleParams", "seed")},
        ),
    ],
)
def test_reads_are_found_by_the_types_of_names(source, found):
    inner = {("Params", "sample"), ("TrainParams", "unet")}
    assert Reads(ast.parse(source)).reads - inner == found
