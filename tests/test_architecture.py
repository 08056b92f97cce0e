"""What stands in several places agrees: flow, tasks, dvc.yaml, parameters, paths and imports."""

import ast
import configparser
import re
import tomllib
from pathlib import Path

import grimp
import pytest
from ruamel.yaml import YAML

from contract import paths
from contract.params import OF_OTHER_SECTIONS, Params
from tasks import evaluate, sample, train

PROJECT = Path(__file__).parents[1]
PACKAGES = ("ddpm", "contract", "tracking", "stages", "tasks", "flows")
DVC = YAML(typ="safe").load(PROJECT / "dvc.yaml")
STAGES = list(DVC["stages"])

SHAPE_NO_RESULT = {
    "contract.params": "DVC compares the parameters themselves",
    "contract.sections": "likewise",
    "contract.paths": "dvc.yaml names the places, and DVC compares them",
    "contract.errors": "what a failed stage says is no result",
    "stages.runtime.runner": "it starts and ends a stage",
    "stages.runtime.progress": "a bar on the terminal",
    "stages.training.previews": "pictures to look at while a training goes on",
    "stages.runtime.alone": "it lets one run after another at the same checkpoints",
    "tracking.runs": "it tells MLflow of results that DVC has without it",
    "tracking.lineage": "it names code and data, to MLflow and in the fingerprint of checkpoints",
    "ddpm.files": "it writes what it is given whole or not at all; a digest is what its name says",
    "ddpm.shapes": "annotations",
}
"""Modules that stages import and need not depend on, each with its reason."""

CARRIED_ALONG = {"register": ("tracking.served_model", "ddpm")}
"""What goes into a stage's result beside its imports: a registered model is this file, and a copy of this folder."""


def syntax(path):
    return ast.parse((PROJECT / path).read_text())


def module_of(path):
    return path.removesuffix(".py").removesuffix("/").replace("/", ".")


def outputs(stage):
    """The paths that a stage puts out, whatever DVC takes them for."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in DVC["stages"][stage].get(kind, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def dependencies(stage):
    """Its files and folders of code, and its data."""
    deps = set(DVC["stages"][stage]["deps"])
    data = {dep for dep in deps if dep.startswith("build/")}
    return deps - data, data


def flow():
    (function,) = (
        node
        for node in syntax("flows/pipeline.py").body
        if isinstance(node, ast.FunctionDef) and node.name == "pipeline"
    )
    return function


def test_the_flow_runs_the_stages_of_dvc_in_their_order():
    # A docstring, and in the workspace the parameters put in force and one call a stage: nothing else.
    docstring, block = flow().body
    first, *calls = block.body
    assert isinstance(docstring.value, ast.Constant)
    assert ast.unparse(block.items[0]) == "open_workspace(workspace) as place"
    assert first.value.func.attr == "activate"
    assert [call.value.func.id for call in calls] == STAGES
    assert all(not call.value.args and not call.value.keywords for call in calls)


def test_the_flow_takes_each_task_from_the_module_of_its_name():
    imported = {
        alias.name: node.module
        for node in syntax("flows/pipeline.py").body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: imported[name] for name in STAGES} == {name: f"tasks.{name}" for name in STAGES}


def found_in(path, pattern):
    found = re.search(pattern, (PROJECT / path).read_text())
    return found and found[1]


def test_what_computes_on_a_gpu_holds_a_slot_of_it_for_each_of_its_processes():
    held = {stage: found_in(f"tasks/{stage}.py", r"with gpu_slots\(read_params\(\)\.(\S+)\) as") for stage in STAGES}
    processes = {stage: found_in(f"stages/{stage}.py", r"main, lambda params: params\.(\S+)\)") for stage in STAGES}
    assert held == processes
    assert {stage for stage in STAGES if held[stage]} == {"reference", "train", "sample", "evaluate"}


def test_each_stage_has_a_task_and_a_program():
    tasks = {path.stem for path in (PROJECT / "tasks").glob("*.py")}
    assert tasks == {*STAGES, "stage", "output", "run_page", "gpu", "locks", "cards", "__init__"}
    assert {path.stem for path in (PROJECT / "stages").glob("*.py")} > set(STAGES)


@pytest.mark.parametrize(
    "path", [PROJECT / "params.yaml", *(PROJECT / "profiles").glob("*.yaml")], ids=lambda p: p.stem
)
def test_the_sections_of_the_parameters_are_the_stages_in_their_order(path):
    assert list(YAML(typ="safe").load(path)) == ["profile", *STAGES]


def test_the_model_of_the_parameters_has_the_same_sections():
    assert [field.alias or name for name, field in Params.model_fields.items()] == ["profile", *STAGES]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_its_own_program_on_its_own_parameters(stage):
    assert DVC["stages"][stage]["cmd"] == f"python -m stages.{stage}"
    assert DVC["stages"][stage]["params"] == [stage, *OF_OTHER_SECTIONS.get(stage, ())]


@pytest.mark.parametrize("stage", STAGES)
def test_a_program_names_itself_to_the_runner(stage):
    # By that name the runner finds the section that must not change meanwhile.
    *_, last = syntax(f"stages/{stage}.py").body
    assert ast.unparse(last.test) == "__name__ == '__main__'"
    (call,) = last.body
    assert call.value.func.id == "run_stage" and call.value.args[0].value == stage


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def only_imports(module):
    """Whether a package's own file just names what lies in it."""
    path = PROJECT / module.replace(".", "/") / "__init__.py"
    return path.is_file() and all(
        isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
        for node in ast.parse(path.read_text()).body
    )


def shaping(graph, roots):
    """The modules that shape results, followed from `roots` through the imports of such modules alone."""
    found, waiting = set(), list(roots)
    while waiting:
        module = waiting.pop()
        if module not in found and module not in SHAPE_NO_RESULT and not only_imports(module):
            found.add(module)
            waiting += graph.find_modules_directly_imported_by(module)
    return found


def below(graph, modules):
    """The modules, and what lies in those that are packages."""
    return {one for module in modules for one in {module, *graph.find_descendants(module)}}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_shapes_its_results(graph, stage):
    carried = below(graph, CARRIED_ALONG.get(stage, ()))
    needed = shaping(graph, [f"stages.{stage}", *carried]) | carried
    code, _ = dependencies(stage)
    named = below(graph, map(module_of, code))
    assert needed - named == set(), "dvc.yaml misses these"
    assert {module for module in named - needed if not only_imports(module)} == set(), "dvc.yaml needs none of these"


@pytest.mark.parametrize("stage", STAGES)
def test_code_that_a_stage_depends_on_is_there(stage):
    code, _ = dependencies(stage)
    for path in code:
        assert (PROJECT / path).is_dir() or (path.endswith(".py") and (PROJECT / path).is_file())


def test_every_exception_is_one(graph):
    imported = {module for stage in STAGES for module in graph.find_upstream_modules(f"stages.{stage}")}
    assert set(SHAPE_NO_RESULT) <= imported


def test_the_registered_model_carries_what_it_is_said_to():
    (call,) = (
        node
        for node in ast.walk(syntax("tracking/registry.py"))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "mlflow.pyfunc.log_model"
    )
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    assert given["python_model"] == "pyfunc_model.__file__" and given["code_paths"] == "['ddpm']"


# What an interrupted run goes on from is no output: DVC deletes outputs before it runs a stage.
KEPT = {"CHECKPOINTS", "DOWNLOADS", "PREVIEWS"}
PLACES = {name: path.as_posix() for name, path in vars(paths).items() if isinstance(path, Path)}
OUTPUTS = {place for name, place in PLACES.items() if place.startswith("build/") and name not in KEPT}


def output_of(place):
    """The output that a place is, or lies in."""
    return next((output for output in OUTPUTS_OF_DVC if place == output or place.startswith(f"{output}/")), None)


OUTPUTS_OF_DVC = set().union(*map(outputs, STAGES))


def test_the_outputs_are_the_places_that_the_stages_know():
    assert {output_of(place) for place in OUTPUTS} == OUTPUTS_OF_DVC
    assert OUTPUTS_OF_DVC <= OUTPUTS
    assert [name for name in KEPT if output_of(PLACES[name])] == []


def places_used(stage):
    """What a program reads and writes, by itself and through stages.datasets.prepared."""

    def names_in(node):
        return {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}

    prepared = {
        node.name: names_in(node)
        for node in syntax("stages/datasets/prepared.py").body
        if isinstance(node, ast.FunctionDef)
    }
    used, followed = names_in(syntax(f"stages/{stage}.py")), set()
    while called := used & set(prepared) - followed:
        used = used.union(*(prepared[name] for name in called))
        followed |= called
    return {PLACES[name] for name in used & set(PLACES)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_data_that_it_reads(stage):
    _, data = dependencies(stage)
    used = {output_of(place) for place in places_used(stage)} - {None}
    assert used == data | outputs(stage)


def test_data_comes_from_an_earlier_stage():
    made = set()
    for stage in STAGES:
        _, data = dependencies(stage)
        assert data <= made
        assert not outputs(stage) & made
        made |= outputs(stage)


def test_the_artifact_of_dvc_is_the_model():
    (artifact,) = DVC["artifacts"].values()
    assert artifact["path"] == PLACES["MODEL"] and artifact["type"] == "model"


def test_the_plots_of_dvc_show_what_there_is():
    assert DVC["plots"] == [PLACES["GRID"]]


def test_tasks_show_the_files_that_the_stages_write():
    # They import no stage, so the places stand twice.
    assert paths.MODEL / "run.json" == train.RUN_FILE
    assert paths.LOSSES == train.LOSSES
    assert paths.GRID == sample.GRID
    assert paths.METRICS == evaluate.METRICS


def test_places_that_flows_and_tasks_name_are_outputs():
    words = {
        word
        for package in ("flows", "tasks")
        for path in (PROJECT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for word in node.value.replace(",", " ").split()
        if word.startswith("build/")
    }
    assert words
    assert {word for word in words if output_of(word) is None} <= {"build/sweeps"}


def project_files():
    """What people write: sources, tests, texts and settings."""
    folders = (*PACKAGES, "tests", "bench", "profiles", "docs")
    inside = (path for folder in folders for path in (PROJECT / folder).rglob("*"))
    texts = {".py", ".md", ".yaml", ".toml", ".sh"}
    for path in (*PROJECT.glob("*"), *inside):
        if path.is_file() and (path.suffix in texts or path.name == "Makefile") and "__pycache__" not in path.parts:
            yield path.relative_to(PROJECT)


def test_a_file_can_be_read_in_one_sitting():
    lengths = {path.as_posix(): len((PROJECT / path).read_text().splitlines()) for path in project_files()}
    assert len(lengths) > 50
    assert {path: length for path, length in lengths.items() if length > 450} == {}


def test_a_module_is_named_by_what_it_does():
    assert [path for path in project_files() if path.stem in {"utils", "util", "helpers", "helper", "common"}] == []


def test_no_class_manages():
    managers = [
        f"{path}: {node.name}"
        for path in project_files()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse((PROJECT / path).read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Manager", "Helper", "Utils"))
    ]
    assert managers == []


def test_no_tool_reports_home():
    prefect = tomllib.loads((PROJECT / "prefect.toml").read_text())
    assert prefect["server"]["analytics_enabled"] is False
    dvc = configparser.ConfigParser()
    dvc.read(PROJECT / ".dvc" / "config")
    assert dvc["core"]["analytics"] == "false" and dvc["core"]["check_update"] == "false"
