"""The pipeline: the table of contents of the project. dvc.yaml names the same stages in the same order."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect import flow

from contract.assignments import parse_overrides
from contract.params import ParamsError, activate, compose, list_profiles
from flows.by_hand import completed
from flows.forms import Overrides
from flows.workspaces.workspace import ProfileName, WorkspaceError, WorkspaceKind, last_commit, opened
from tasks.download import download
from tasks.evaluate import evaluate
from tasks.preprocess import preprocess
from tasks.reference import reference
from tasks.register import register
from tasks.run_page import LOCAL_MLFLOW, mlflow_address, tracking_server
from tasks.sample import sample
from tasks.stage import log_failures_once
from tasks.train import train


@flow(name="pipeline")
def pipeline(
    profile: ProfileName | None = None,
    params: Overrides = Overrides(),  # noqa: B008
    workspace: WorkspaceKind = "checkout",
) -> None:
    """From raw images to a registered model of flowers.

    Args:
        profile: a saved experiment of profiles/; left out, params.yaml as it is.
        params: what differs from it.
        workspace: checkout runs in the project's folder, and leaves the results there; isolated runs the last commit in
            a worktree of its own, and saves the results as a DVC experiment under the flow run's name.
    """
    log_failures_once()
    with opened(workspace) as place:
        place.put_in_force(profile, params.model_dump(by_alias=True, exclude_unset=True))
        download()
        preprocess()
        reference()
        train()
        sample()
        evaluate()
        register()


def main() -> None:
    """`python -m flows.pipeline`: nothing where everything is up to date; else the flow, on a temporary server."""
    arguments = _parse_arguments()
    workspace: WorkspaceKind = "isolated" if arguments.isolated else "checkout"
    try:
        overrides = parse_overrides(arguments.set)
        # Bad parameters are told before a server is started; an isolated run leaves the checkout's params.yaml alone.
        if arguments.isolated:
            with last_commit():
                params = compose(arguments.profile, overrides)
        else:
            params = activate(arguments.profile, overrides)
    except (ParamsError, WorkspaceError) as error:
        sys.exit(f"pipeline: {error}")
    if workspace == "checkout" and is_up_to_date():
        print(f"Everything is up to date with params.yaml (profile {params.profile}).")
    else:
        print(f"Running the pipeline on profile {params.profile}.", flush=True)
        completed(
            "pipeline",
            lambda: pipeline(arguments.profile, Overrides(**overrides), workspace, return_state=True),
        )
    if workspace == "checkout":
        print(results_summary())


def is_up_to_date() -> bool:
    """Whether DVC finds nothing to do in any stage."""
    stages = [task.name for task in (download, preprocess, reference, train, sample, evaluate, register)]
    return subprocess.run([sys.executable, "-m", "dvc", "status", "--quiet", *stages], check=False).returncode == 0


def results_summary() -> str:
    """Where the results are, and which command opens each page."""
    metrics = json.loads(Path("build/metrics.json").read_text())
    figures = [
        f"    {name:42} {value:10.4f}{interval(metrics, name)}"
        for name, value in metrics.items()
        if isinstance(value, float) and not name.endswith(("_std", "_low", "_high", "_expected"))
    ]
    return "\n".join(
        [
            "",
            "  pictures    build/samples/grid.png, build/samples/reverse_process.webp",
            "  metrics     build/metrics.json",
            *figures,
            f"  MLflow run  {metrics['mlflow_run_id'] or 'none (tracking is off)'}",
            "",
            *pages(),
        ]
    )


def pages() -> list[str]:
    """Where runs can be looked at: on the servers in force, or by the command that starts one."""
    if tracking_server():
        lines = [f"  compare runs:           {mlflow_address()}"]
    else:
        lines = [f"  make mlflow     compare runs:           {LOCAL_MLFLOW}"]
    if server := os.environ.get("PREFECT_API_URL"):
        return [*lines, f"  look at the flow runs:  {server.removesuffix('/api')}"]
    return [*lines, "  make prefect    look at the flow runs:  http://127.0.0.1:4200"]


def interval(metrics: dict[str, Any], name: str) -> str:
    """The confidence interval of a figure that has one."""
    if f"{name}_low" not in metrics:
        return ""
    return f"  (95 %: {metrics[f'{name}_low']:.4f} … {metrics[f'{name}_high']:.4f})"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=main.__doc__)
    parser.add_argument("--profile", help=f"put a saved experiment in force: {', '.join(list_profiles())}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a parameter, as train.num_steps=100"
    )
    parser.add_argument(
        "--isolated",
        action="store_true",
        help="run the last commit in a worktree of its own, and save the results as a DVC experiment",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
