"""The training loop of the stage: trains, and logs, draws, evaluates and saves at intervals."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from contract.errors import StageError
from ddpm.checkpoint import checkpoint_path, list_checkpoints, step_of
from ddpm.checkpoint_writer import CheckpointWriter
from ddpm.diffusion import build_diffusion
from ddpm.distributed import Vote, is_first, wait_for_all
from ddpm.images import NotANumberError
from ddpm.training import train
from ddpm.training_state import NotFiniteError
from stages.runtime.interruption import Interrupted, defer_interruption
from stages.runtime.reporting import progress_bar
from stages.training.evaluation import TrainingEvaluation
from stages.training.experiment import Experiment
from stages.training.grids import draw_grid
from stages.training.losses import LossLog
from stages.training.previews import show_samples
from tracking.runs import Tracker


def learn(experiment: Experiment, tracker: Tracker) -> None:
    """Train to the last step.

    Raises:
        Interrupted: a signal came; a checkpoint holds all steps so far.
        StageError: a loss or gradient is not finite.
    """
    params, state = experiment.params, experiment.state
    if state.step == 0:
        # MLflow's slider starts at step 0: without a picture there, the grid of a page just opened is empty.
        show_samples(tracker, draw_grid(experiment), 0, experiment.previews)
    evaluation, vote = TrainingEvaluation(experiment, tracker), Vote()
    total, done = params.num_steps * params.batch_size, state.step * params.batch_size
    with (
        explain_not_finite(experiment),
        progress_bar("train", total, "images", initial=done) as bar,
        defer_interruption() as interruption,
        CheckpointWriter(
            experiment.folder, experiment.identity, params.keep_checkpoints, params.keep_checkpoints_every
        ) as writer,
    ):
        if done and evaluation.is_due(state.step):  # stopped between checkpoint and evaluation
            evaluation.add(state.step)
        losses = LossLog(experiment, tracker, bar)
        for event in train(state, experiment.images, build_diffusion(params.diffusion), params):
            is_last = event.step == params.num_steps
            losses.add(event)
            if is_last or event.step % params.log_every == 0:
                losses.write(event)
            if is_last or event.step % params.sample_every == 0:
                state.check_finite(params)
                show_samples(tracker, draw_grid(experiment), event.step, experiment.previews)
            signal_name = interruption()
            is_interrupted = vote.any(signal_name is not None)
            is_evaluated = evaluation.is_due(event.step, is_last)
            if is_last or is_interrupted or is_evaluated or event.step % params.checkpoint_every == 0:
                losses.keep()
                save(experiment, writer)
            if is_interrupted and not is_last:
                writer.wait()  # the message promises the file
                wait_for_all()  # the first process to leave would have the others killed, one of which still saves
                how = signal_name or "a signal to another process"
                path = checkpoint_path(experiment.folder, event.step)
                raise Interrupted(f"{how} at step {event.step}, kept in {path}; run it again to go on")
            if is_evaluated:
                writer.wait()  # an evaluation may take longer than the grace period of an interruption
                evaluation.add(event.step)
        if evaluation.is_due(state.step, is_last=True):  # finished by an earlier run without evaluation
            evaluation.add(state.step)


def save(experiment: Experiment, writer: CheckpointWriter) -> None:
    """Start to write a checkpoint of the current step, in the first process.

    Raises:
        NotFiniteError: a loss or gradient so far is not finite, so nothing after it is worth keeping.
    """
    experiment.state.check_finite(experiment.params)
    if is_first():
        writer.save(experiment.state, asdict(experiment.recording))


@contextmanager
def explain_not_finite(experiment: Experiment) -> Iterator[None]:
    """Turn numbers that are not finite in the block into a StageError that names the last good checkpoint."""
    try:
        yield
    except NotFiniteError as error:
        wait_for_all()  # the first process has just written its last checkpoint, which the others look for
        what, step = str(error), error.step
    except NotANumberError:  # the loss was finite, but its step made the weights useless
        step = experiment.state.step
        what = f"an image drawn after step {step} is not finite"
    else:
        return
    kept = [path for path in list_checkpoints(experiment.folder) if step_of(path) < step]
    last_good = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written before it"
    raise StageError(
        f"{what}; {last_good}; lower train.learning_rate, raise train.warmup_steps, or set train.gradient_clip"
    )
