"""Transfer averaged weights from another machine: in half precision, in parts small enough to be copied."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save

from bench.gpu.published import AVERAGED
from ddpm.config import DiffusionConfig, UNetConfig
from ddpm.files import atomic_path
from ddpm.published import publish_weights
from ddpm.unet import UNet

PART_BYTES = 15_900_000
"""Size of a part: under 16 MiB, and four of them under 64."""

_INDEX = "weights.json"


class PartsError(Exception):
    """Parts are missing or damaged; the message says which."""


def write_parts(keep: Path, numbers: Sequence[int], folder: Path) -> list[Path]:
    """Write some parts of the weights that a call kept, and an index of all.

    Raises:
        PartsError: nothing is kept there, or there is no part of that number.
    """
    try:
        with safe_open(keep / AVERAGED, framework="pt") as file:
            setting = json.loads(file.metadata()["setting"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except OSError as error:
        raise PartsError(f"no training has left its weights in {keep}: {error}") from None
    data = save({name: tensor.to(torch.float16) for name, tensor in tensors.items()})
    parts = [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
    if wrong := [number for number in numbers if not 0 <= number < len(parts)]:
        raise PartsError(f"the weights have parts 0 … {len(parts) - 1}, got {', '.join(map(str, wrong))}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number in numbers:
        with atomic_path(folder / _part_name(number)) as temporary:
            temporary.write_bytes(parts[number])
        written.append(folder / _part_name(number))
    index = {"parts": len(parts), "sha256": hashlib.sha256(data).hexdigest()} | setting
    with atomic_path(folder / _INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n")
    return written


def assemble(folders: Sequence[Path], target: Path) -> None:
    """Make a model folder, for `ddpm.load` and the stages, from the parts in `folders`.

    Args:
        folders: hold all parts together, and the index.
        target: made by this, whole or not at all.

    Raises:
        PartsError: parts are missing or damaged, or the target exists.
    """
    if target.exists():
        raise PartsError(f"{target} exists: name a folder that does not")
    files = list_files(folders)
    index = read_index(files)
    names = [_part_name(number) for number in range(index["parts"])]
    if missing := [name for name in names if name not in files]:
        raise PartsError(f"{', '.join(missing)} are missing of {len(names)} in all: bring them, too")
    data = b"".join(files[name].read_bytes() for name in names)
    if hashlib.sha256(data).hexdigest() != index["sha256"]:
        raise PartsError("the parts are damaged, or of different trainings: their digest is wrong; bring them again")
    unet = UNet(UNetConfig.from_json(index["unet"]))
    unet.load_state_dict({name: tensor.float() for name, tensor in load(data).items()})
    building = target.with_name(f".{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)  # of a call that was ended
    diffusion = DiffusionConfig(num_timesteps=index["num_timesteps"])
    publish_weights(building, {"averaged": unet}, diffusion, index["image_size"])
    for name, content in (("trained_on.json", {"train_splits": ["train"]}), ("run.json", {"mlflow_run_id": ""})):
        with atomic_path(building / name) as temporary:
            temporary.write_text(json.dumps(content) + "\n")
    building.rename(target)


def list_files(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the files of several folders by name.

    Raises:
        PartsError: a folder does not exist.
    """
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise PartsError(f"no such folder: {', '.join(missing)}")
    return {path.name: path for folder in folders for path in folder.iterdir()}


def read_index(files: Mapping[str, Path]) -> dict[str, Any]:
    """Return the index of all parts.

    Raises:
        PartsError: it is not among the files.
    """
    if _INDEX not in files:
        raise PartsError(f"there is no {_INDEX}: name the folders that hold the parts")
    index: dict[str, Any] = json.loads(files[_INDEX].read_text())
    return index


def _part_name(number: int) -> str:
    return f"weights.{number:02}.part"
