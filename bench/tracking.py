"""Measure what logging to MLflow costs the training loop: `python -m bench.tracking`.

Blocks of steps alternate between no tracker and MLflow on a fresh sqlite file, in the quickstart's size and logging
interval, so that a drift of the machine's speed touches both alike. The figure is the median of the blocks' ratios.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator

import torch

from contract.params import compose
from ddpm import GaussianDiffusion, TrainingConfig, TrainingImages, TrainingState, UNet, cosine_betas, train
from ddpm.training import StepEvent
from tracking.runs import Tracker, open_run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tracking", description=__doc__)
    parser.add_argument("--blocks", type=int, default=8, help="blocks of each kind (default 8)")
    parser.add_argument("--steps", type=int, default=40, help="steps of a block (default 40)")
    arguments = parser.parse_args()
    params = compose("quickstart", {})
    events = _training(2 * arguments.blocks * arguments.steps + 10, params.preprocess.image_size)
    for _ in range(10):
        next(events)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        with open_run(params) as mlflow_tracker:
            times: dict[str, list[float]] = {"none": [], "mlflow": []}
            for _ in range(arguments.blocks):
                times["none"].append(_time_events(events, arguments.steps, Tracker(), params.train.log_every))
                times["mlflow"].append(_time_events(events, arguments.steps, mlflow_tracker, params.train.log_every))
    ratios = [logged / bare for bare, logged in zip(times["none"], times["mlflow"], strict=True)]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, logging every {params.train.log_every} steps")
    print(f"{'tracker':10} {'ms/step':>10}")
    for name, values in times.items():
        print(f"{name:10} {1000 * statistics.median(values) / arguments.steps:10.2f}")
    print(f"cost of MLflow: {100 * (statistics.median(ratios) - 1):.2f} % (median of {len(ratios)} pairs)")


def _time_events(events: Iterator[StepEvent], num_steps: int, tracker: Tracker, log_every: int) -> float:
    started = time.perf_counter()
    for _ in range(num_steps):
        event = next(events)
        if event.step % log_every == 0:
            row = {"loss": float(event.loss), "learning_rate": event.learning_rate}
            tracker.record_metrics(row, event.step)
    return time.perf_counter() - started


def _training(num_steps: int, image_size: int) -> Iterator[StepEvent]:
    params = compose("quickstart", {}).train
    config = TrainingConfig(num_steps=num_steps)
    state = TrainingState.start(UNet(params.unet.configure()), config)
    pixels = torch.randint(0, 256, (512, 3, image_size, image_size), dtype=torch.uint8)
    return train(
        state, TrainingImages(pixels, params.batch_size, seed=0), GaussianDiffusion(cosine_betas(1000)), config
    )


if __name__ == "__main__":
    main()
