"""Checkpoints of other trainings: which one a training that starts anew might have gone on from, and which may go."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from contract.environment import SWEEP
from contract.errors import name_few
from contract.nesting import flatten
from ddpm.checkpoint import CheckpointError, abbreviate, list_checkpoints, read_experiment, step_of
from stages.runtime.alone import hold_if_free
from stages.runtime.outputs import write_json
from stages.runtime.reporting import say, warn
from stages.training.evaluation import BEST
from stages.training.experiment import Experiment

FINISHED = "finished.json"
"""File beside the checkpoints of a training whose result stands: its last step, and the files that may go."""

_MAX_DIFFERENCES = 3
"""Most differences with which another training still looks like the one that was meant."""

_FOLDER_NAME = re.compile(r"[0-9a-f]{16}")


def warn_of_near_one(experiment: Experiment) -> None:
    """Say where an interrupted training lies that differs little from this one, which starts at step 0.

    Trials of a sweep are meant to differ in parameters.
    """
    near = []
    for folder in _list_others(experiment):
        checkpoints = list_checkpoints(folder)
        if not checkpoints or _is_finished(folder):
            continue
        try:
            parameters, others = compare_identities(read_experiment(checkpoints[-1]), experiment.identity)
            age = -checkpoints[-1].stat().st_mtime
        except (CheckpointError, OSError):  # the second, where another training removes it just now
            continue
        count = len(parameters) + len(others)
        if count <= _MAX_DIFFERENCES and not (parameters and os.environ.get(SWEEP)):
            near.append((count, age, checkpoints[-1], parameters + others))
    if near:
        _, _, path, differences = min(near)
        warn(
            "train",
            f"starts at step 0; {path} holds step {step_of(path)} of an interrupted training, which goes on if this is "
            f"as it was: {'; '.join(differences)}",
        )


def compare_identities(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Describe the differences between two identities: in parameters, with both values, and in data and code."""
    one, other = (flatten({n: v for n, v in each.items() if n != "code"}) for each in (saved, current))
    names = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    data = {"images_md5": "the images", "labels_md5": "their classes"}
    parameters = [
        f"train.{name} was {_show(one, name)} and is {_show(other, name)}" for name in names if name not in data
    ]
    others = [words for name, words in data.items() if name in names]
    return parameters, others + _compare_code(saved.get("code"), current["code"])


def mark_as_finished(experiment: Experiment) -> None:
    """Note that the result of a training stands, and remove the checkpoints of finished ones before the last two.

    A finished training's weights are in build/model and in DVC's cache; its checkpoints serve only to go further.
    Milestones of train.keep_checkpoints_every stay, and all of a training that has gone beyond its last step here.
    """
    step, every = experiment.state.step, experiment.params.keep_checkpoints_every
    checkpoints = list_checkpoints(experiment.folder)
    disposable = [path.name for path in checkpoints if every is None or step_of(path) % every]
    try:
        write_json(experiment.folder / FINISHED, {"step": step, "disposable": [*disposable, BEST]})
        finished = sorted(
            filter(_is_finished, _list_others(experiment)), key=lambda one: (one / FINISHED).stat().st_mtime
        )
        sizes = [_remove_disposable(one) for one in finished[:-1]]
    except OSError as error:  # the result stands
        warn("train", f"checkpoints of finished trainings stay: {error}")
        return
    if any(sizes):
        say(
            "train",
            f"removed the checkpoints of finished trainings, except for the last two: {sum(sizes) / 1e9:.1f} GB",
        )


def _list_others(experiment: Experiment) -> Iterator[Path]:
    """Yield the folders of all other trainings."""
    for folder in experiment.checkpoints.iterdir():
        if _FOLDER_NAME.fullmatch(folder.name) and folder.is_dir() and folder != experiment.folder:
            yield folder


def _read_mark(folder: Path) -> dict[str, Any]:
    try:
        mark: dict[str, Any] = json.loads((folder / FINISHED).read_bytes())
    except (OSError, ValueError):
        return {"step": -1, "disposable": []}
    return mark


def _is_finished(folder: Path) -> bool:
    checkpoints = list_checkpoints(folder)
    return bool(checkpoints) and step_of(checkpoints[-1]) <= _read_mark(folder)["step"]


def _remove_disposable(folder: Path) -> int:
    """Remove what may go, unless another process works in the folder; return its bytes."""
    size = 0
    with hold_if_free(folder) as is_free:
        if is_free and _is_finished(folder):
            for path in [folder / name for name in _read_mark(folder)["disposable"]]:
                if path.is_file():
                    size += path.stat().st_size
                    path.unlink()
    return size


def _compare_code(saved: Any, current: Mapping[str, str]) -> list[str]:
    if saved == current:
        return []
    if not isinstance(saved, Mapping):  # an older version kept one digest of all
        return ["the code"]
    changed = [name for name in sorted({*saved, *current}) if saved.get(name) != current.get(name)]
    return [f"the code of {name_few(changed)}"]


def _show(parameters: Mapping[str, Any], name: str) -> str:
    return abbreviate(parameters[name]) if name in parameters else "absent"
