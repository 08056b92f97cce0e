"""Train the network, going on from the newest checkpoint of the same experiment, and publish its weights."""

from contract.params import Params
from contract.paths import LOSSES, MODEL
from ddpm.distributed import is_first
from stages.runtime.alone import work_alone_in
from stages.runtime.reporting import say
from stages.runtime.runner import run_stage
from stages.training.experiment import describe_experiment, prepare_experiment
from stages.training.loop import learn
from stages.training.losses import write_losses
from stages.training.publishing import publish
from stages.training.resume import resume
from tracking.runs import open_run


def main(params: Params) -> None:
    """Train on build/dataset; write build/model and build/losses.csv."""
    experiment = prepare_experiment(params.train)
    with work_alone_in(experiment.folder, "train"):
        resume(experiment)
        say("train", describe_experiment(experiment))
        recording = experiment.recording
        with open_run(params, "train", recording.mlflow.get("mlflow_run_id")) as tracker:
            recording.mlflow = {"mlflow_run_id": tracker.run_id, "mlflow_experiment_id": tracker.experiment_id}
            learn(experiment, tracker)
            if is_first():
                publish(experiment, MODEL)
                write_losses(recording, LOSSES)
                tracker.record_file(LOSSES, "training")


if __name__ == "__main__":
    run_stage("train", main, lambda params: params.train.num_processes)
