"""Run all measurements and proofs on a GPU in one call with a deadline.

`python -m bench.gpu pack` puts the prepared training and validation images into one file, `python -m bench.gpu` does
the rest. That needs torch, numpy, pandas, Pillow and safetensors alone, runs the GPU tests where pytest is installed,
and takes diffusers as a peer where that is. On a CPU it is a rehearsal at toy size.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from bench.gpu.inspect_machine import inspect_machine
from bench.gpu.kernels import profile_kernels
from bench.gpu.layers import time_layers
from bench.gpu.phases import Phase, end_at_deadline, run_phases
from bench.gpu.prediction import predict_step
from bench.gpu.published import draw_all_calls, draw_few_calls, measure_validation_loss, train_published
from bench.gpu.record import record
from bench.gpu.report import Deadline, Report
from bench.gpu.session import TOY, Session, Size, load_images
from bench.gpu.speed import time_larger_batches, time_parts, time_sampling, time_training
from bench.gpu.table import write_table
from bench.gpu.weights import PartsError, assemble, write_parts
from ddpm.devices import prepare_best_device

IMAGES = Path("build/gpu/images.npz")
OUTPUT = Path("build/gpu/results")
KEEP = Path(tempfile.gettempdir()) / "flowers-gpu"

# What cannot be had twice comes first; the profiler, which slows a process down for good, comes late.
PHASES = (
    Phase("machine", inspect_machine, 10, importance=1),
    Phase("record", record, 120, importance=1),
    Phase("published run", train_published, 260, importance=1),
    Phase("samples, few calls", draw_few_calls, 15, importance=1),
    Phase("training speed", time_training, 30, importance=2),
    Phase("samples, all calls", draw_all_calls, 100, importance=2),
    Phase("validation loss", measure_validation_loss, 10, importance=3),
    Phase("sampling speed", time_sampling, 30, importance=3),
    Phase("kernels", profile_kernels, 20, importance=3),
    Phase("larger batches", time_larger_batches, 90, importance=4),
    Phase("layers", time_layers, 40, importance=5),
    Phase("parts", time_parts, 80, importance=6),
)


def main() -> None:
    arguments = _parse_arguments()
    try:
        arguments.function(arguments)
    except PartsError as error:
        sys.exit(f"bench.gpu: {error}")


def _run(arguments: argparse.Namespace) -> None:
    deadline = Deadline(arguments.seconds)
    best = prepare_best_device()
    if arguments.device not in ("auto", "cpu", best.type):
        sys.exit(f"bench.gpu: PyTorch finds no GPU here, got --device {arguments.device}; cpu rehearses at toy size")
    device = torch.device("cpu") if arguments.device == "cpu" else best
    try:
        train_images, valid_images = load_images(arguments.images)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(
            f"bench.gpu: {arguments.images} holds no images: {error}; `python -m bench.gpu pack` writes such a file"
        )
    report = Report(arguments.output, deadline)
    size = replace(Size(), image_size=train_images.shape[-1])
    if device.type == "cpu":
        size, stride = TOY, max(1, train_images.shape[-1] // TOY.image_size)
        train_images, valid_images = (images[..., ::stride, ::stride] for images in (train_images, valid_images))
        report.say("a rehearsal on a CPU, at toy size: figures mean nothing, nothing is compiled or recorded")
    report.add("rehearsal", device.type == "cpu")
    session = Session(
        device, size, train_images, valid_images, arguments.keep, deadline, report, arguments.tests_end_at
    )
    session.keep.mkdir(parents=True, exist_ok=True)
    torch._dynamo.config.recompile_limit = 64  # one process compiles the network for many shapes and forms
    end_at_deadline(session, lambda: write_table(report))
    is_whole = run_phases(session, PHASES)
    write_table(report)
    print(f"all results are in {report.folder}; `python -m bench.gpu parts 0 1 2 3 …` brings the weights", flush=True)
    if not is_whole:
        sys.exit("bench.gpu: not all that matters most was done, see above")


def _predict(arguments: argparse.Namespace) -> None:
    size, rates = Size(), (1e12 * arguments.tflops, 1e9 * arguments.gb_per_second)
    batches = (size.batch_size, *size.larger_batches)
    print(f"{'milliseconds at batch':32}" + "".join(f"{batch:>10}" for batch in batches))
    columns = [predict_step(size.unet, size.image_size, batch, *rates) for batch in batches]
    for name in columns[0]:
        print(f"{name:32}" + "".join(f"{column[name]:10.2f}" for column in columns))


def _pack(arguments: argparse.Namespace) -> None:
    # With the stages' modules, which the other commands do without.
    from bench.gpu.pack import PackError, pack
    from contract.errors import StageError

    try:
        pack(arguments.file, arguments.source)
    except (PackError, StageError, OSError) as error:
        sys.exit(f"bench.gpu: {error}")


def _write_parts(arguments: argparse.Namespace) -> None:
    for path in write_parts(arguments.keep, arguments.numbers, arguments.output):
        print(path)


def _assemble(arguments: argparse.Namespace) -> None:
    if arguments.track:
        from bench.gpu.track import require_setting, track  # with the stages' modules

        require_setting(arguments.folders)
    assemble(arguments.folders, arguments.target)
    if arguments.track:
        track(arguments.target, arguments.folders)
    print(f"bench.gpu: {arguments.target} holds the model")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    commands = parser.add_subparsers(required=True)

    run = commands.add_parser("run", help="measure, test, train and draw; what happens where no command is named")
    run.add_argument("--images", type=Path, default=IMAGES, help=f"the file that pack wrote (default {IMAGES})")
    run.add_argument("--output", type=Path, default=OUTPUT, help=f"where all results go (default {OUTPUT})")
    run.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cuda", "cpu"),
        help="by default the GPU where there is one; cpu rehearses",
    )
    run.add_argument("--seconds", type=float, default=560.0, help="after which it ends, at most 10 later (default 560)")
    run.add_argument(
        "--tests-end-at", type=float, default=150.0, help="seconds after which GPU tests are stopped (150)"
    )
    run.set_defaults(function=_run)

    pack = commands.add_parser("pack", help="put the prepared images into one file")
    pack.add_argument("file", type=Path, nargs="?", default=IMAGES, help=f"what to write (default {IMAGES})")
    pack.add_argument("--source", type=Path, help="folder of Oxford Flowers 102 (default: the prepared build/dataset)")
    pack.set_defaults(function=_pack)

    parts = commands.add_parser("parts", help="write parts of the weights that run has kept")
    parts.add_argument("numbers", type=int, nargs="+", help="which ones: 0 1 2 3, and then 4 5 6 7")
    parts.add_argument("--output", type=Path, default=OUTPUT, help=f"where they go (default {OUTPUT})")
    parts.set_defaults(function=_write_parts)

    whole = commands.add_parser("assemble", help="make a model folder of the parts")
    whole.add_argument("folders", type=Path, nargs="+", help="that hold the parts; with --track also the results")
    whole.add_argument("target", type=Path, help="the model folder, such as build/model; must not exist")
    whole.add_argument("--track", action="store_true", help="open an MLflow run for it, so that it can be registered")
    whole.set_defaults(function=_assemble)

    predict = commands.add_parser("predict", help="print how long a step should take, by part")
    predict.add_argument("--tflops", type=float, default=798.0, help="of a large bf16 product (default: an H100's)")
    predict.add_argument("--gb-per-second", type=float, default=3000.0, help="of a large copy (default: an H100's)")
    predict.set_defaults(function=_predict)

    for command in (run, parts):
        command.add_argument("--keep", type=Path, default=KEEP, help=f"where weights stay (default {KEEP})")
    words = sys.argv[1:]
    is_named = bool(words) and (words[0] in commands.choices or words[0] in ("-h", "--help"))
    return parser.parse_args(words if is_named else ["run", *words])


if __name__ == "__main__":
    main()
