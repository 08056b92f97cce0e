"""Train the network, going on from the newest checkpoint of the same experiment, and publish its weights."""

from collections.abc import Callable
from functools import partial

from contract.params import Params
from contract.paths import LOSSES, MODEL, MODEL_RUN, TRAINED_ON
from ddpm.distributed import is_first
from ddpm.published import publish_model
from stages.datasets.suitability import check_suitability
from stages.runtime.alone import work_alone_in
from stages.runtime.outputs import write_json
from stages.runtime.reporting import say
from stages.runtime.runner import run_stage
from stages.training.evaluation import publish_best
from stages.training.experiment import Experiment, describe_experiment, prepare_experiment
from stages.training.loop import learn
from stages.training.losses import write_losses
from stages.training.other_trainings import mark_as_finished
from stages.training.resume import resume
from tracking.runs import open_run


def main(params: Params) -> Callable[[], None] | None:
    """Train on build/dataset; write build/model and build/losses.csv.

    Returns:
        What the first process has to do once the result stands.
    """
    check_suitability(params)
    experiment = prepare_experiment(params.train)
    with work_alone_in(experiment.folder, "train"):
        resume(experiment)
        say("train", describe_experiment(experiment))
        recording = experiment.recording
        with open_run(params, "train", recording.mlflow.get("mlflow_run_id")) as tracker:
            recording.mlflow = {"mlflow_run_id": tracker.run_id, "mlflow_experiment_id": tracker.experiment_id}
            learn(experiment, tracker)
            if is_first():
                publish(experiment)
                write_losses(recording, LOSSES)
                tracker.record_file(LOSSES, "training")
        return partial(mark_as_finished, experiment) if is_first() else None


def publish(experiment: Experiment) -> None:
    """Write the weights with their configuration, the MLflow run, the splits trained on, and any evaluations."""
    params, recording = experiment.params, experiment.recording
    publish_model(
        MODEL, experiment.state, params.diffusion, experiment.image_size, experiment.classes, params.label_dropout
    )
    write_json(MODEL_RUN, recording.mlflow)
    write_json(TRAINED_ON, {"train_splits": params.splits})
    if params.evaluate_every:
        publish_best(experiment.folder, recording.evaluations, MODEL)


if __name__ == "__main__":
    run_stage("train", main, lambda params: params.train.num_processes)
