"""The command `flowers`. Commands import what they need when they run, so that `flowers --help` answers at once."""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from contract.environment import leave_repository
from contract.errors import FlowersError
from contract.paths import DVC_FILE, list_profiles
from ddpm.config import MAX_GUIDANCE_SCALE, MAX_SEED, SamplerName, SamplingConfig
from flows import MAX_CONCURRENT
from flows.process import interrupt_on_signals, keep_interrupt, name_user, report_errors

CHAMPION = "models:/flowers-ddpm@champion"

Profile = Annotated[str | None, Parameter(choices=list_profiles() or None)]
Assignments = Annotated[tuple[str, ...], Parameter("--set", metavar="NAME=VALUE", show_default=False)]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
ModelName = Annotated[str | None, Parameter(validator=lambda _, name: require_text(name))]
PortNumber = Annotated[int, Parameter(validator=Number(gte=1, lte=65535))]

app = App(
    "flowers",
    help="Train, sample, evaluate and version a diffusion model of flowers.",
    version=lambda: version("flowers-ddpm"),
    default_parameter=Parameter(negative=(), consume_multiple=False),
    help_format="plaintext",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(help="Install completion of commands and options for your shell.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the command line names; an error meant for people ends it with one message."""
    signals = interrupt_on_signals() if arguments is None else []
    words = sys.argv[1:] if arguments is None else list(arguments)
    leave_repository()
    prefer_code_of_this_folder(words)
    name_user()
    with report_errors(" ".join(["flowers", *app.parse_commands(words)[0]])), keep_interrupt(signals):
        app(words)


def prefer_code_of_this_folder(words: Sequence[str]) -> None:
    """Start again with the code of the current folder, where that is another checkout than the installed one.

    Worktrees and copies of the project share its environment; DVC's stages run the code of the folder, too.
    """
    local = Path("flows/cli.py")
    if local.is_file() and not local.samefile(__file__):
        os.execv(sys.executable, [sys.executable, "-m", "flows.cli", *words])


def require_text(name: str | None) -> None:
    """Refuse an empty name, as an unset variable of a shell gives it: another one would be taken."""
    if name == "":
        raise ValueError("the name is empty")


def require_checkout() -> None:
    """Refuse to work outside the project's folder, or with settings that Prefect cannot read."""
    if not DVC_FILE.is_file():
        raise FlowersError(f"{Path.cwd()} holds no {DVC_FILE}: change to the folder of the project")
    require_prefect_settings()


def require_prefect_settings() -> None:
    """Refuse settings that Prefect cannot read."""
    try:
        # It also prints what it cannot read, and warns of a home that it cannot make; a check says that better.
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
            import prefect.context  # noqa: F401 (no more than that: the log would be written to this stderr)
    except (OSError, RuntimeError, ValueError) as error:  # it reads them when it is imported
        reason = " ".join(str(error).split())
        raise FlowersError(
            "Prefect's settings cannot be used; they stand in environment variables (PREFECT_…, HOME), prefect.toml, "
            f".env and profiles.toml of PREFECT_HOME (~/.prefect): {reason}"
        ) from None


@app.command
def run(*, profile: Profile = None, assignments: Assignments = (), isolated: bool = False) -> None:
    """Run the pipeline: bring all results up to date with the parameters.

    Args:
        profile: saved experiment to write into params.yaml first; without it, params.yaml is taken as it is.
        assignments: a parameter and its new value, such as train.num_steps=100; repeatable.
        isolated: run the last commit in a git worktree of its own and save the results as a DVC experiment.
    """
    require_checkout()
    from flows.pipeline import run_by_hand

    run_by_hand(profile, list(assignments), isolated)


@app.command
def sweep(
    *,
    profile: Profile = None,
    grid: Annotated[tuple[str, ...], Parameter(metavar="NAME=[VALUE,VALUE]", show_default=False)] = (),
    overrides: Annotated[str | None, Parameter(metavar="LIST")] = None,
    assignments: Assignments = (),
    name: str | None = None,
    max_concurrent: Annotated[int, Parameter(validator=Number(gte=1, lte=MAX_CONCURRENT))] = 2,
) -> None:
    """Run the pipeline for many experiments and rank them.

    Args:
        profile: saved experiment to start from; without it, params.yaml of the last commit.
        grid: a parameter and its values; repeatable, every combination is a trial.
        overrides: the trials' parameters as a YAML list, instead of a grid, such as '[{train.seed: 1}]'.
        assignments: a parameter of all trials and its value; repeatable.
        name: name of the sweep, in small letters, digits and hyphens; without it, the name of its flow run.
        max_concurrent: trials at once, where a worker runs them.
    """
    require_checkout()
    from flows.sweep import run_by_hand

    run_by_hand(profile, list(grid), overrides, list(assignments), name, max_concurrent)


@app.command
def compare(
    runs: Annotated[tuple[str, ...], Parameter(metavar="RUN", show_default=False)] = (),
    /,
    *,
    sweep: str | None = None,
    last: Count | None = None,
    csv: Path | None = None,
) -> None:
    """Compare runs: their metrics and the parameters that differ, best first.

    Args:
        runs: id of an MLflow run, its beginning, or its name; without any choice, all runs.
        sweep: compare the runs of this sweep.
        last: compare the newest runs, this many.
        csv: file to write the table to as well.
    """
    from tracking.comparison import compare_page, compare_runs, format_table, write_csv
    from tracking.search import choose_runs

    found = choose_runs(runs, sweep, last)
    if found.empty:
        raise FlowersError("MLflow has no runs yet; `make run` makes one")
    table = compare_runs(found)
    if csv:
        try:
            write_csv(table, csv)
        except (OSError, ValueError) as error:
            raise FlowersError(f"the table cannot be written: {error}; name another file") from error
    print(format_table(table))
    print(f"\nMLflow: {compare_page(found)}")


@app.command
def up(*, host: str = "127.0.0.1", prefect_port: PortNumber = 4200, mlflow_port: PortNumber = 5000) -> None:
    """Start the service: a Prefect server, an MLflow server and a worker, until Ctrl-C.

    Args:
        host: address to listen on; 0.0.0.0 serves the whole network.
        prefect_port: port of the Prefect server.
        mlflow_port: port of the MLflow server.
    """
    require_checkout()
    from flows.service.addresses import Addresses
    from flows.service.up import serve_until_interrupted

    serve_until_interrupted(Addresses(host, prefect_port, mlflow_port))


@app.command
def set_up() -> None:
    """Set up the Prefect server that PREFECT_API_URL names: work pool, automation and deployments."""
    require_checkout()
    from flows.service.provision import provision

    provision()


@app.command
def serve(
    *,
    host: str = "127.0.0.1",
    port: PortNumber = 5001,
    model: ModelName = None,
    timeout: Count = 600,
) -> None:
    """Serve the champion: draw images on request over HTTP, until Ctrl-C.

    Args:
        host: address to listen on; 0.0.0.0 serves the whole network.
        port: port to listen on.
        model: registered model; without it, register.model_name of params.yaml.
        timeout: seconds that a request may take.
    """
    from tracking.serve import serve as serve_champion

    serve_champion(host, port, model, timeout)


@app.command
def promote(number: Annotated[str, Parameter(metavar="VERSION")], /, *, model: ModelName = None) -> None:
    """Make a version of the registered model the champion, whatever its metrics.

    Args:
        number: number of the version, as MLflow's page and the register stage name it.
        model: registered model; without it, register.model_name of params.yaml.
    """
    from contract.params import read_params
    from tracking.promotion import promote_by_hand
    from tracking.registry import Registry

    registry = Registry(model or read_params().register.model_name)
    print(f"promote: {promote_by_hand(registry, number)}")


@app.command
def export(model: str, folder: Path, /, *, weights: str | None = None) -> None:
    """Write a model as a folder that Hugging Face diffusers loads.

    Args:
        model: folder such as build/model, or address such as models:/flowers-ddpm@champion.
        folder: folder to write; must not exist.
        weights: set of weights, such as raw; without it, the averaged ones.
    """
    from flows.drawing import export_model

    export_model(model, folder, weights)


@app.command
def draw(
    n: Count,
    /,
    *,
    model: str = CHAMPION,
    output: Path = Path("drawn"),
    weights: str | None = None,
    seed: Annotated[int, Parameter(validator=Number(gte=0, lte=MAX_SEED))] = SamplingConfig.seed,
    sampler: SamplerName = SamplingConfig.sampler,
    steps: Count = SamplingConfig.num_sampling_steps,
    eta: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = SamplingConfig.eta,
    classes: Annotated[tuple[str, ...], Parameter("--class", metavar="NAME", show_default=False)] = (),
    guidance: Annotated[
        float, Parameter(validator=Number(gte=0, lte=MAX_GUIDANCE_SCALE))
    ] = SamplingConfig.guidance_scale,
) -> None:
    """Draw images into a folder: a PNG file each, and a grid of them.

    Args:
        n: number of images.
        model: folder such as build/model, or address of a registered model.
        output: folder for the images; must be new or empty.
        weights: set of weights, such as raw; without it, the averaged ones.
        seed: seed of the noise; image i depends on the seed and on i alone.
        sampler: ddpm is the published one; the others need far fewer steps.
        steps: network calls per image.
        eta: amount of noise that each step of ddim and dpm_solver++ adds, 0 … 1.
        classes: class to draw, by name or number; repeatable, images take them in turn.
        guidance: how strongly the class counts; 1 as trained, more exaggerates it.
    """
    from flows.drawing import draw_images

    settings = {"seed": seed, "sampler": sampler, "steps": steps, "eta": eta, "guidance": guidance}
    draw_images(n, model, output, weights, classes, settings)


if __name__ == "__main__":
    main()
