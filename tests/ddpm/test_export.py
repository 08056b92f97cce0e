"""Models exported to diffusers: the same images of the same noise."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline
from diffusers.utils import dynamic_modules_utils

import ddpm
from ddpm import ImageNoise, UNet, UNetConfig, sampler_steps
from ddpm.classes import ImageClass
from ddpm.config import DiffusionConfig
from ddpm.diffusion import build_diffusion
from ddpm.export import ExportError, to_diffusers
from ddpm.published import PublishedModel
from ddpm.seeds import stream_seed
from tests.ddpm.small_networks import awake

# Sizes that tell apart what could be confused: more sinusoids than channels, fewer, as many; one block a level, two.
NETWORKS = {
    "tiny": UNetConfig(widths=(8, 16), attention=(False, True), num_res_blocks=1, time_embedding_dim=24, norm_groups=4),
    "deep": UNetConfig(
        widths=(8, 8, 16), attention=(True, False, True), num_res_blocks=2, time_embedding_dim=6, norm_groups=2
    ),
    "flat": UNetConfig(widths=(8,), attention=(False,), num_res_blocks=1, time_embedding_dim=8, norm_groups=4),
}
DIFFUSIONS = {
    "eps": DiffusionConfig("linear", 1000),
    "v": DiffusionConfig("cosine", 200, prediction="v"),
    "x_0": DiffusionConfig("linear", 50, 1e-4, 0.2, prediction="x_0"),
}


def model_of(network="tiny", prediction="eps", **changes):
    torch.manual_seed(0)
    unet = awake(UNet(dataclasses.replace(NETWORKS[network], **changes))).requires_grad_(False)
    return PublishedModel(unet, build_diffusion(DIFFUSIONS[prediction]), image_size=8)


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """Export a model, and load it as users of diffusers do, offline."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])

    def export(model):
        to_diffusers(model, tmp_path / "export")
        pipeline = DDPMPipeline.from_pretrained(tmp_path / "export", trust_remote_code=True, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return export


@pytest.mark.parametrize(
    ("network", "prediction", "num_steps"),
    [("tiny", "eps", 100), ("deep", "v", 40), ("flat", "x_0", 50), ("tiny", "x_0", 10)],
)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_diffusers_draws_the_same_images_from_the_same_noise(network, prediction, num_steps, sampler, exported):
    model = model_of(network, prediction)
    pipeline, options = exported(model), {}
    if sampler == "ddim":
        pipeline = DDIMPipeline(pipeline.unet, DDIMScheduler.from_config(pipeline.scheduler.config))
        pipeline.set_progress_bar_config(disable=True)
        num_steps, options = 10, {"use_clipped_model_output": True}
    generators = [torch.Generator().manual_seed(stream_seed(5, image)) for image in range(3)]  # those of ImageNoise
    drawn = pipeline(3, generator=generators, num_inference_steps=num_steps, output_type="np", **options).images
    *_, last = sampler_steps(sampler, model.unet, model.diffusion, ImageNoise(5, range(3), (3, 8, 8)), num_steps)
    expected = (last.x_t / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    # Its tables are float32, whose products over T steps keep 4 digits.
    torch.testing.assert_close(torch.from_numpy(drawn), expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("model_folder")
def test_it_is_written_without_diffusers(tmp_path):
    program = (
        "import sys; sys.modules['diffusers'] = None; "
        "import ddpm, ddpm.export; ddpm.export.to_diffusers(ddpm.load('model', device='cpu'), 'export')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(ddpm.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "export").rglob("*.*")) == [
        "export/model_index.json",
        "export/scheduler/scheduler_config.json",
        "export/unet/config.json",
        "export/unet/diffusers_unet.py",
        "export/unet/diffusion_pytorch_model.safetensors",
    ]
    assert json.loads((tmp_path / "export/model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "model"], "nothing else is left behind"


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="exists"):
        to_diffusers(model_of(), tmp_path)
    conditional = dataclasses.replace(model_of("flat", num_classes=1), classes=(ImageClass(1, "rose"),))
    with pytest.raises(ExportError, match="does not support classes, got a model that knows 1"):
        to_diffusers(conditional, tmp_path / "export")
    monkeypatch.setattr("ddpm.export.save_file", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        to_diffusers(model_of(), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []
