"""Write the code that each stage depends on into dvc.yaml, as the imports say; `make dependencies` runs it.

A stage depends on the modules that shape its results. They are found by following the imports from `stages.NAME`; a
package whose modules are all needed is named by its folder. Entries for data and comments stay as they are.
"""

import ast
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path

import grimp
from grimp import ImportGraph
from ruamel.yaml import YAML

PROJECT = Path(__file__).parents[1]
PACKAGES = ("ddpm", "contract", "tracking", "stages", "tasks", "flows")

SHAPE_NO_RESULT = {
    "contract": "DVC compares parameters and paths itself; errors, events and variables are no results",
    "tracking": "it repeats in MLflow what DVC records without it",
    "stages.datasets.suitability": "it refuses early what a later stage would refuse",
    "stages.runtime": "it starts, reports and ends a stage",
    "stages.training.other_trainings": "it looks at other trainings' checkpoints, and removes them",
    "stages.training.previews": "pictures to look at while a training goes on",
    "ddpm.checks": "it refuses what is no image",
    "ddpm.files": "it writes files whole or not at all, and computes digests",
    "ddpm.meeting": "it waits for the other processes",
    "ddpm.shapes": "annotations of shapes",
}
"""Packages and modules that stages import without depending on them, each with the reason."""

SHAPE_RESULTS = {
    "contract.class_names": "prepared datasets and samples name their classes",
    "stages.runtime.outputs": "it gives tables and JSON their form",
    "tracking.promotion": "it decides which registered version becomes the champion",
    "tracking.registry": "it registers the model",
    "tracking.served_model": "it is part of the registered model",
}
"""Modules inside those packages that shape results all the same, each with the reason."""

CARRIED_ALONG = {"register": ("tracking.served_model", "ddpm")}
"""Modules and packages that are copied into the result of a stage."""

_LAZY_PACKAGES = ("ddpm",)
"""Packages that import their modules only when a name is asked for, so that an import of them may need all."""


def build_graph() -> ImportGraph:
    """Return the imports among the project's modules, without those for type checkers alone."""
    return grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def find_dependencies(graph: ImportGraph, stage: str) -> list[str]:
    """Return the files and folders of code that a stage depends on: its program first, `ddpm` last."""
    carried = _with_descendants(graph, CARRIED_ALONG.get(stage, ()))
    needed = carried | _follow_imports(graph, [f"stages.{stage}", *carried])
    paths = {_find_path(graph, module, needed) for module in needed}
    return sorted(paths, key=lambda path: (path != f"stages/{stage}.py", path.startswith("ddpm"), path))


def rewrite_dependencies(text: str, graph: ImportGraph) -> str:
    """Return the text of dvc.yaml with the code entries of every stage's `deps` replaced."""
    for stage in YAML(typ="safe").load(text)["stages"]:
        block = re.search(rf"^  {stage}:\n(?:(?:    .*)?\n)*?    deps:\n((?:      .*\n?)+)", text, re.MULTILINE)
        if block is None:
            raise SystemExit(f"dvc.yaml: stage {stage} has no block `deps:` with one entry per line, indented by 6")
        lines = {line.split()[1]: line for line in block[1].splitlines() if line.lstrip().startswith("- ")}
        data = [line for path, line in lines.items() if path.startswith("build/")]
        code = [lines.get(path, f"      - {path}") for path in find_dependencies(graph, stage)]
        entries = "".join(f"{line}\n" for line in [*data, *code])
        text = f"{text[: block.start(1)]}{entries}{text[block.end(1) :]}"
    return text


def shapes_results(module: str) -> bool:
    """Return whether a module's name lies outside `SHAPE_NO_RESULT`, or is named as an exception to it."""
    return module in SHAPE_RESULTS or not any(f"{module}.".startswith(f"{name}.") for name in SHAPE_NO_RESULT)


def main() -> int:
    """Rewrite dvc.yaml, or with --check say whether it would change."""
    parser = ArgumentParser(prog="python -m tools.dvc_dependencies", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if dvc.yaml is out of date")
    path = PROJECT / "dvc.yaml"
    before = path.read_text()
    after = rewrite_dependencies(before, build_graph())
    if parser.parse_args().check:
        if after != before:
            print("dvc.yaml does not name the code that its stages depend on: run `make dependencies`", file=sys.stderr)
        return int(after != before)
    path.write_text(after)
    return 0


def _follow_imports(graph: ImportGraph, roots: Iterable[str]) -> set[str]:
    """Return the modules that shape results, reached from `roots` through the imports of such modules alone."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        if module in found or not shapes_results(module):
            continue
        if module in _LAZY_PACKAGES:
            waiting += graph.find_descendants(module)
        elif not _only_imports(module):
            found.add(module)
            waiting += graph.find_modules_directly_imported_by(module)
    return found


def _with_descendants(graph: ImportGraph, modules: Iterable[str]) -> set[str]:
    return {found for module in modules for found in {module, *graph.find_descendants(module)}}


def _find_path(graph: ImportGraph, module: str, needed: set[str]) -> str:
    """Return the outermost folder around a module in which all modules are needed, or else the module's file."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        package, folder = ".".join(parts[:length]), "/".join(parts[:length])
        inside = _with_descendants(graph, [package])
        if (PROJECT / folder).is_dir() and all(one in needed or _only_imports(one) for one in inside):
            return folder
    path = "/".join(parts)
    return f"{path}.py" if (PROJECT / f"{path}.py").is_file() else f"{path}/__init__.py"


def _only_imports(module: str) -> bool:
    """Return whether a package's own file holds nothing but a docstring, imports and `__all__`."""
    path = PROJECT / module.replace(".", "/") / "__init__.py"
    return path.is_file() and all(
        isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        for node in ast.parse(path.read_text()).body
    )


if __name__ == "__main__":
    sys.exit(main())
