"""Measure what the pipeline costs beyond the bare training loop: `python -m bench.pipeline`.

Blocks of steps of the quickstart's training alternate between the bare loop of `ddpm` and the whole train stage, with
MLflow on a fresh sqlite file, its progress bar, grids of samples and checkpoints at the profile's intervals. The figure
is the median of the blocks' ratios. It trains on the prepared dataset, so `make run` comes first.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from contract.params import compose
from ddpm.diffusion import build_diffusion
from ddpm.training import train
from stages.training.experiment import Experiment, prepare_experiment
from stages.training.loop import learn
from tracking.runs import open_run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.pipeline", description=__doc__)
    parser.add_argument("--blocks", type=int, default=4, help="blocks of each kind (default 4)")
    arguments = parser.parse_args()
    params = compose("quickstart", {})
    experiment = prepare_experiment(params.train)
    num_steps = params.train.sample_every
    _bare(experiment, 10)
    times: dict[str, list[float]] = {"bare loop": [], "train stage": []}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        # Those of a real training stay apart.
        experiment.checkpoints = experiment.previews = Path(folder)
        with open_run(params) as tracker:
            # A multiple of all intervals to start from: then each block logs, draws and saves as often.
            _bare(experiment, num_steps - experiment.state.step)
            for _ in range(arguments.blocks):
                times["bare loop"].append(_bare(experiment, num_steps))
                started = time.perf_counter()
                _until(experiment, num_steps)
                learn(experiment, tracker)
                times["train stage"].append(time.perf_counter() - started)
    ratios = [whole / bare for bare, whole in zip(times["bare loop"], times["train stage"], strict=True)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, blocks of {num_steps} steps")
    for name, values in times.items():
        print(f"{name:12} {1000 * statistics.median(values) / num_steps:8.2f} ms a step")
    print(f"cost of the pipeline: {100 * (statistics.median(ratios) - 1):.2f} % (median of {len(ratios)} pairs)")


def _until(experiment: Experiment, num_steps: int) -> None:
    experiment.params = dataclasses.replace(
        experiment.params, num_steps=experiment.state.step + num_steps, rate_schedule="constant", warmup_steps=0
    )


def _bare(experiment: Experiment, num_steps: int) -> float:
    _until(experiment, num_steps)
    started = time.perf_counter()
    diffusion = build_diffusion(experiment.params.diffusion)
    for _ in train(experiment.state, experiment.images, diffusion, experiment.params):
        pass
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
