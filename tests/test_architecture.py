"""Flow, tasks, dvc.yaml, parameters, paths and imports agree."""

import configparser
import itertools
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import flows.pipeline
from contract import paths
from contract.params import Params
from contract.stage_names import READ_BESIDE
from tools.dvc_dependencies import PACKAGES, SHAPE_NO_RESULT, SHAPE_RESULTS, build_graph, rewrite_dependencies

PROJECT = Path(__file__).parents[1]
DVC = YAML(typ="safe").load(PROJECT / "dvc.yaml")
STAGES = list(DVC["stages"])

NOT_OUTPUTS = {"CHECKPOINTS", "DOWNLOADS", "DOWNLOAD_LOCK", "FORMER_PIN", "PREVIEWS", "STAGED_RECEIPT"}
"""Files and folders in build/ that must survive a stage's start: DVC deletes outputs before it runs a stage."""


def outputs(stage):
    """Return the paths of all outputs of a stage, metrics and plots included."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in DVC["stages"][stage].get(kind, [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


ALL_OUTPUTS = set().union(*map(outputs, STAGES))


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_has_a_task_a_program_and_parameters_of_its_name(stage):
    assert getattr(flows.pipeline, stage).name == stage
    assert DVC["stages"][stage]["cmd"] == f"python -m stages.{stage}"
    assert DVC["stages"][stage]["params"] == [stage, *READ_BESIDE.get(stage, ())]
    named = re.findall(r"^    run_stage\(\s*\"(\w+)\"", (PROJECT / f"stages/{stage}.py").read_text(), re.MULTILINE)
    assert named == [stage], "the runner compares the parameters of the stage of this name before and after"


def test_the_sections_of_the_parameters_are_the_stages_in_their_order():
    sections = [field.name for field in fields(Params)]
    assert sections == list(YAML(typ="safe").load(PROJECT / "params.yaml")) == ["profile", *STAGES]


def test_dvc_yaml_names_the_code_that_shapes_each_result():
    text = (PROJECT / "dvc.yaml").read_text()
    assert rewrite_dependencies(text, build_graph()) == text, "run `make dependencies`"


def test_the_command_for_dependencies_restores_a_stale_dvc_yaml():
    text = (PROJECT / "dvc.yaml").read_text()
    stale = text.replace("      - ddpm/diffusion.py\n", "").replace("- stages/download.py", "- stages/gone.py")
    assert stale != text
    assert rewrite_dependencies(stale, build_graph()) == text


def test_every_exception_from_the_dependencies_is_one():
    graph = build_graph()
    imported = set().union(*(graph.find_upstream_modules(f"stages.{stage}") for stage in STAGES))
    inside = set(imported)
    for module in imported:
        inside.update(itertools.accumulate(module.split("."), "{}.{}".format))  # the packages around it
    assert set(SHAPE_NO_RESULT) - inside == set()
    assert set(SHAPE_RESULTS) - imported == set()


def test_the_outputs_of_dvc_are_the_places_that_the_stages_know():
    places = {name: path.as_posix() for name, path in vars(paths).items() if isinstance(path, Path)}
    in_build = {name: place for name, place in places.items() if place.startswith("build/")}
    outside = {
        name for name, place in in_build.items() if not any(f"{place}/".startswith(f"{out}/") for out in ALL_OUTPUTS)
    }
    assert outside == NOT_OUTPUTS
    assert set(in_build.values()) >= ALL_OUTPUTS
    assert DVC["plots"] == [places["GRID"]]
    assert [artifact["path"] for artifact in DVC["artifacts"].values()] == [places["MODEL"]]


def test_data_comes_from_an_earlier_stage():
    made = set()
    for stage in STAGES:
        assert {path for path in DVC["stages"][stage]["deps"] if path.startswith("build/")} <= made
        assert not outputs(stage) & made
        made |= outputs(stage)


def test_a_file_can_be_read_in_one_sitting_and_says_what_it_is_for():
    folders = (*PACKAGES, "bench", "tools", "tests", "docs")
    files = [path for folder in folders for path in (PROJECT / folder).rglob("*") if path.suffix in {".py", ".md"}]
    assert len(files) > 100
    assert [str(path) for path in files if len(path.read_text().splitlines()) > 450] == []
    assert [str(path) for path in files if path.stem in {"utils", "util", "helpers", "helper", "common"}] == []


def test_no_tool_reports_home():
    prefect = tomllib.loads((PROJECT / "prefect.toml").read_text())
    assert prefect["server"]["analytics_enabled"] is False
    dvc = configparser.ConfigParser()
    dvc.read(PROJECT / ".dvc" / "config")
    assert dvc["core"]["analytics"] == "false" and dvc["core"]["check_update"] == "false"


@pytest.mark.parametrize(
    "module", ["contract.params", "contract.events", "flows.pipeline", "stages.download", "stages.preprocess"]
)
def test_what_starts_often_does_not_import_torch(module):
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=False).returncode == 0
