"""The identity of an experiment: the parameters, data and code that shape what is learnt."""

import ast
import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contract.errors import StageError
from contract.sections import TrainParams, as_plain

_WATCHING = frozenset({
    "log_every", "sample_every", "num_grid_images", "grid_sampling_steps", "checkpoint_every",
    "keep_checkpoints", "keep_checkpoints_every", "evaluate_every", "evaluate_num_images", "evaluate_split",
    "num_processes",
})  # fmt: skip
"""Parameters that change how a training is watched, not what it learns."""

_WATCHING_MODULES = frozenset({
    "ddpm.checks", "ddpm.features", "ddpm.files", "ddpm.meeting", "ddpm.metrics", "ddpm.shapes",
})  # fmt: skip
"""Modules that evaluate what is learnt, or shape no result."""

_LEARNING_MODULES = (
    "stages.datasets.prepared", "stages.training.experiment", "stages.training.loop", "stages.training.losses",
)  # fmt: skip
"""Modules of the stage that shape what is learnt and what a checkpoint contains."""

_IMAGES_PER_PART = 4096


def identify(params: TrainParams, images_md5: str, labels_md5: str) -> dict[str, Any]:
    """Return all that two trainings must share for one to go on from the other's checkpoint.

    A constant learning rate does not depend on the number of steps, so a finished training can be carried further.
    """
    parameters = {name: value for name, value in as_plain(params).items() if name not in _WATCHING}
    if params.rate_schedule == "constant":
        del parameters["num_steps"]
    if not params.class_conditional:  # there are no labels to drop
        del parameters["label_dropout"]
    return parameters | {"images_md5": images_md5, "labels_md5": labels_md5, "code": digest_code()}


def digest_images(images: Tensor, positions: Tensor) -> str:
    """Return the md5 of the pixels that are trained on: the same array may be split in other ways."""
    digest = hashlib.md5(usedforsecurity=False)
    for part in torch.split(positions, _IMAGES_PER_PART):  # all of them may be more than the memory holds
        digest.update(images[part].contiguous().numpy().data)
    return digest.hexdigest()


def digest_code() -> dict[str, str]:
    """Return the digest of each module that shapes what is learnt: all imported ones of ddpm, and some of the stage.

    Raises:
        StageError: a file is no Python by now, as while it is edited.
    """
    digests = {}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        is_library = name.partition(".")[0] == "ddpm" and name not in _WATCHING_MODULES
        if file and (is_library or name in _LEARNING_MODULES):
            try:
                digests[name] = _digest_source(Path(file).read_bytes())
            except (SyntaxError, ValueError) as error:
                raise StageError(f"{file} has changed since it was imported, and is no Python now: {error}") from None
    return digests


@cache
def _digest_source(source: bytes) -> str:
    """Return the digest of what a module does: comments, docstrings and layout do not count."""
    return hashlib.sha256(json.dumps(_describe(ast.parse(source))).encode()).hexdigest()[:16]


def _describe(node: Any) -> Any:
    """Return a syntax tree as lists, the same in all versions of Python: ast.dump shows other empty fields in each."""
    if isinstance(node, list):
        return [_describe(each) for each in node if not _is_text(each)]
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if name != "kind" and value not in (None, [])]
        return [type(node).__name__, *((name, _describe(value)) for name, value in fields)]
    return repr(node)


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
