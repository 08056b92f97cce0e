"""Export published models for other libraries: `to_diffusers(ddpm.load("build/model"), FOLDER)` for 🤗 diffusers.

The folder holds JSON and safetensors, and is written without diffusers. Load it in diffusers with

    DDPMPipeline.from_pretrained(FOLDER, trust_remote_code=True)

trust_remote_code is needed because the folder contains a network class, a few lines long: see `ddpm.diffusers_unet`.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ddpm.config import UNetConfig
from ddpm.diffusion import GaussianDiffusion
from ddpm.files import atomic_path
from ddpm.published import PublishedModel

_NETWORK = Path(__file__).with_name("diffusers_unet.py")
_NETWORK_CLASS = "FlowersUNet"
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x_0": "sample"}


class ExportError(Exception):
    """A model cannot be exported; the message says why and what to do."""


def to_diffusers(model: PublishedModel, folder: Path | str) -> None:
    """Write a folder that diffusers' DDPMPipeline loads, and that draws the same images from the same noise.

    Args:
        model: a model without classes, which that pipeline does not support.
        folder: the folder to create, written whole or not at all.

    Raises:
        ExportError: the model knows classes, or the folder exists.
    """
    folder = Path(folder)
    if model.classes:
        raise ExportError(
            f"DDPMPipeline does not support classes, got a model that knows {len(model.classes)}: "
            "export a model trained with train.class_conditional false"
        )
    if folder.exists():
        raise ExportError(f"{folder} exists: name a folder that does not exist")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        whole = Path(temporary) / "whole"  # only its owner can read a temporary folder itself
        (whole / "unet").mkdir(parents=True)
        (whole / "scheduler").mkdir()
        _write_json(whole / "model_index.json", pipeline_settings())
        _write_json(whole / "scheduler" / "scheduler_config.json", scheduler_settings(model.diffusion))
        _write_json(whole / "unet" / "config.json", network_settings(model.unet.config, model.image_size))
        shutil.copyfile(_NETWORK, whole / "unet" / _NETWORK.name)
        names = names_in_diffusers(model.unet.config)
        tensors = {
            f"{names[layer]}.{kind}": tensor.cpu().contiguous()
            for name, tensor in model.unet.state_dict().items()
            for layer, _, kind in [name.rpartition(".")]
        }
        with atomic_path(whole / "unet" / "diffusion_pytorch_model.safetensors") as weights:
            save_file(tensors, weights, {"format": "pt"})
        whole.rename(folder)


def pipeline_settings() -> dict[str, Any]:
    """Return the content of model_index.json: the classes of the pipeline and its two parts."""
    return {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": [_NETWORK.stem, _NETWORK_CLASS],
    }


def scheduler_settings(diffusion: GaussianDiffusion) -> dict[str, Any]:
    """Return the configuration of DDPMScheduler and its relatives, with the betas in full precision."""
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": diffusion.num_timesteps,
        "trained_betas": diffusion.betas.tolist(),
        "prediction_type": _PREDICTIONS[diffusion.prediction],
        "variance_type": "fixed_small",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "timestep_spacing": "trailing",
    }


def network_settings(config: UNetConfig, image_size: int) -> dict[str, Any]:
    """Return the configuration of UNet2DModel."""
    kinds = ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention]
    return {
        "_class_name": _NETWORK_CLASS,
        "sample_size": image_size,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "time_embedding_dim": config.time_embedding_dim,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
        "block_out_channels": list(config.widths),
        "layers_per_block": config.num_res_blocks,
        "downsample_padding": 0,  # ours pads at the bottom and right alone
        "dropout": config.dropout,
        "attention_head_dim": None,  # one head
        "norm_num_groups": config.norm_groups,
        "norm_eps": 1e-5,
    }


def names_in_diffusers(config: UNetConfig) -> dict[str, str]:
    """Return the name in UNet2DModel of each layer with weights, by its name in `ddpm.unet.UNet`."""
    names = {
        "time_embedding.first": "time_embedding.linear_1",
        "time_embedding.second": "time_embedding.linear_2",
        "first_conv": "conv_in",
        "last_norm": "conv_norm_out",
        "last_conv": "conv_out",
    }
    num_levels, num_blocks = len(config.widths), config.num_res_blocks
    for level in range(num_levels):
        start = level * (num_blocks + 1)
        for block in range(num_blocks):
            names |= _block_names(f"down.{start + block}", f"down_blocks.{level}", block)
        names[f"down.{start + num_blocks}.conv"] = f"down_blocks.{level}.downsamplers.0.conv"
        start = level * (num_blocks + 2)  # on the way up both count levels from the coarsest
        for block in range(num_blocks + 1):
            names |= _block_names(f"up.{start + block}", f"up_blocks.{level}", block)
        names[f"up.{start + num_blocks + 1}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    for block in range(2):
        names |= _block_names(f"middle.{block}", "mid_block", block)
    return names


def _block_names(ours: str, theirs: str, number: int) -> dict[str, str]:
    residual = {
        "norm_1": "norm1",
        "conv_1": "conv1",
        "time": "time_emb_proj",
        "norm_2": "norm2",
        "conv_2": "conv2",
        "shortcut": "conv_shortcut",
    }
    attention = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "project": "to_out.0"}
    return {
        **{f"{ours}.residual.{one}": f"{theirs}.resnets.{number}.{other}" for one, other in residual.items()},
        **{f"{ours}.attention.{one}": f"{theirs}.attentions.{number}.{other}" for one, other in attention.items()},
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
