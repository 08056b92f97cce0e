"""The pipeline: the table of contents of the project. dvc.yaml names the same stages in the same order."""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client

from flows.workspace import WorkspaceKind, opened
from stages.params import Overrides, ParamsError, activate, composed, list_profiles, parse_overrides
from tasks.download import download
from tasks.evaluate import evaluate
from tasks.preprocess import preprocess
from tasks.reference import reference
from tasks.register import register
from tasks.sample import sample
from tasks.train import train

EXIT_INTERRUPTED = 130  # as a shell counts Ctrl-C
EXIT_TERMINATED = 143  # as a shell counts SIGTERM


@flow(name="pipeline")
def pipeline(
    profile: str | None = None,
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
        # An isolated run leaves the checkout's params.yaml alone, and must hear of bad parameters as soon.
        params = (composed if arguments.isolated else activate)(arguments.profile, overrides)
    except ParamsError as error:
        sys.exit(f"pipeline: {error}")
    if workspace == "checkout" and is_up_to_date():
        print(f"Everything is up to date with params.yaml (profile {params.profile}).")
    else:
        print(f"Running the pipeline on profile {params.profile}.", flush=True)
        run(arguments.profile, Overrides(**overrides), workspace)
    if workspace == "checkout":
        print(results_summary())


def run(profile: str | None, params: Overrides, workspace: WorkspaceKind) -> None:
    """The flow in this process; where it does not complete, this process ends."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        start_server()
        state = pipeline(profile, params, workspace, return_state=True)
    except KeyboardInterrupt:
        print("pipeline: interrupted; what is done is kept, and the same command goes on", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    if not state.is_completed():
        sys.exit(f"pipeline: {state.message}")


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """Leave by way of Python's own end, which stops the temporary server; the signal's default would leave it behind.

    Prefect calls this when it has ended the flow.
    """
    print("pipeline: ended by SIGTERM; what is done is kept, and the same command goes on", file=sys.stderr, flush=True)
    sys.exit(EXIT_TERMINATED)


def start_server() -> None:
    """Start the temporary server, where no other is configured, out of reach of the terminal's Ctrl-C.

    That signal goes to all that the terminal runs, and a flow whose server has ended hangs in reporting its own end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        get_client(sync_client=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
            "  make mlflow     compare runs:           http://127.0.0.1:5000",
            "  make prefect    look at the flow runs:  http://127.0.0.1:4200",
        ]
    )


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
