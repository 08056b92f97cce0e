"""The sample stage: arrays, pictures, classes, and a record of what they were made from."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from contract.errors import StageError
from ddpm.images import class_grid, grid
from ddpm.published import load_model
from stages.runtime.runner import run_stage
from stages.sample import main
from stages.sampling.drawing import draw_samples
from tests.small_experiment import CONDITIONAL, differ_by_rounding

SAMPLES = Path("build/samples")
CPU = torch.device("cpu")


def read_picture(name, scale=1):
    """Read a picture whose pixels are enlarged by `scale`."""
    with Image.open(SAMPLES / name) as picture:
        return np.array(picture)[::scale, ::scale]


def read_samples():
    return torch.from_numpy(np.load(SAMPLES / "samples.npy")).permute(0, 3, 1, 2)


def test_the_stage_writes_arrays_grid_animation_and_record(model, make_params):
    params = make_params({"sample.batch_size": None})
    main(params)
    names = ["grid.png", "reverse_process.png", "reverse_process.webp", "samples.json", "samples.npy"]
    first = {path.name: path.read_bytes() for path in SAMPLES.iterdir()}
    assert sorted(first) == names
    pixels, _ = draw_samples(load_model(model), params.sample, CPU)
    samples = np.load(SAMPLES / "samples.npy")
    assert samples.dtype == np.uint8 and samples.shape == (12, 16, 16, 3)
    np.testing.assert_array_equal(samples, pixels.permute(0, 2, 3, 1))
    # 16 pixels are enlarged sixfold, for the eye.
    np.testing.assert_array_equal(read_picture("grid.png", 6), grid(pixels[:4]))
    animation = Image.open(SAMPLES / "reverse_process.webp")
    assert animation.n_frames == 3 and animation.size == (6 * 38, 6 * 38)
    main(params)
    assert {path.name: path.read_bytes() for path in SAMPLES.iterdir()} == first


def test_the_strip_shows_images_on_their_way_a_row_each(model, make_params):
    params = make_params({"sample.num_sampling_steps": 16, "sample.num_frames": 16, "sample.num_grid_images": 7})
    main(params)
    pixels, frames = draw_samples(load_model(model), params.sample, CPU)
    strip = read_picture("reverse_process.png", 6)
    # Five rows of twelve images of 16 pixels, from the first shown step to the finished image.
    assert strip.shape == (2 + 5 * 18, 2 + 12 * 18, 3)
    for row in range(5):
        top = 2 + row * 18
        np.testing.assert_array_equal(strip[top : top + 16, 2:18], frames[0][row].permute(1, 2, 0))
        np.testing.assert_array_equal(strip[top : top + 16, -18:-2], pixels[row].permute(1, 2, 0))


@pytest.mark.parametrize("changes", [{}, {"sample.batch_size": None}, {"sample.sampler": "ddpm"}])
def test_an_interpolation_goes_from_one_image_to_another(model, make_params, changes):
    main(make_params({"sample.num_interpolation_images": 7, "sample.interpolation_ends": [5, 2]} | changes))
    strip, samples = read_picture("interpolation.png", 6), np.load(SAMPLES / "samples.npy")
    assert strip.shape == (20, 2 + 7 * 18, 3)
    row = [strip[2:18, 2 + i * 18 : 18 + i * 18] for i in range(7)]
    assert differ_by_rounding(row[0], samples[5]) and differ_by_rounding(row[-1], samples[2])
    assert not any(differ_by_rounding(one, other) for one, other in zip(row[1:], row[:-1], strict=True))


@pytest.mark.parametrize("weights", ["averaged", "raw", "averaged_0.5"])
def test_the_record_names_the_weights_and_the_parameters(model, make_params, weights):
    params = make_params({"sample.weights": weights, "train.extra_ema_decays": [0.5]})
    main(params)
    record = json.loads((SAMPLES / "samples.json").read_text())
    digest = hashlib.sha256((model / f"{weights}.safetensors").read_bytes()).hexdigest()
    assert record == {"model_sha256": digest, "mlflow_run_id": "", "train_splits": ["train"]} | params.section("sample")


def test_grid_and_files_go_to_the_run_of_the_model(model, make_params, notes, recording_run):
    (model / "run.json").write_text('{"mlflow_run_id": "the trained"}')
    main(make_params())
    assert recording_run == [("sample", "the trained")] and notes.ended == ["FINISHED"]
    ((key, step, image),) = notes.images
    assert (key, step) == ("final_samples", 0) and image.shape == (38, 38, 3)
    names = ("grid.png", "reverse_process.webp", "reverse_process.png")
    assert notes.files == [(f"build/samples/{name}", "samples") for name in names]


def test_the_classes_of_the_images_are_shown_and_recorded(conditional_model, make_params):
    main(make_params(CONDITIONAL | {"sample.num_grid_images": 8, "sample.classes": ["Rose", 1]}))
    pixels, picture = read_samples(), read_picture("grid.png")
    np.testing.assert_array_equal(picture, class_grid(pixels[:8], ["rose", "01"], scale=6))
    table = pd.read_csv(SAMPLES / "classes.csv", dtype={"class_name": str}, keep_default_na=False)
    assert list(table.columns) == ["image", "class_number", "class_name"]
    assert list(table["image"]) == list(range(12))
    assert list(table["class_number"]) == [8, 3] * 6 and list(table["class_name"]) == ["rose", "01"] * 6
    record = json.loads((SAMPLES / "samples.json").read_text())
    assert record["classes"] == ["Rose", 1] and record["guidance_scale"] == 1.0


def test_strip_interpolation_and_run_show_the_classes(conditional_model, make_params, notes, recording_run):
    (conditional_model / "run.json").write_text('{"mlflow_run_id": "the trained"}')
    changes = {"sample.num_interpolation_images": 5, "sample.interpolation_ends": [2, 5], "sample.guidance_scale": 2.0}
    params = make_params(CONDITIONAL | changes)
    main(params)
    pixels, frames = draw_samples(load_model(conditional_model), params.sample, CPU)
    in_turn = torch.cat([frame[:4] for frame in frames])
    strip = class_grid(in_turn, ["01", "nan", "rose", "01"], scale=6)
    np.testing.assert_array_equal(read_picture("reverse_process.png"), strip)
    # Images 2 and 5 are of the third class, and so are those between them.
    row, width = read_picture("interpolation.png"), 6 * (2 + 5 * 18)
    ends = row[:, -width:][::6, ::6][2:18][:, [*range(2, 18), *range(74, 90)]]
    assert differ_by_rounding(ends, torch.cat([pixels[2], pixels[5]], dim=2).permute(1, 2, 0))
    caption = class_grid(pixels[:1], ["rose"], scale=6)[:, : -6 * 20]
    np.testing.assert_array_equal(row[:, :-width], caption)
    ((_, _, image),) = notes.images
    np.testing.assert_array_equal(image, read_picture("grid.png"))
    assert [Path(path).name for path, _ in notes.files][3:] == ["classes.csv", "interpolation.png"]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("conditional_model", {"sample.classes": ["ross"]}, r"unknown class 'ross'; did you mean rose \(8\)"),
        ("conditional_model", {"sample.classes": [4]}, r"unknown class 4; .* 01, nan \(5\)"),
        # As if parameters had changed, and the stage were run without the training before it.
        ("model", {"sample.classes": ["rose"]}, "the model knows no classes"),
        ("model", {"sample.guidance_scale": 2.0}, "the model knows no classes"),
    ],
)
def test_classes_that_a_model_does_not_know_are_refused(request, make_params, kind, changes, message):
    request.getfixturevalue(kind)
    with pytest.raises(StageError, match=f"build/model .*{message}"):
        main(make_params(CONDITIONAL | changes))
    assert not SAMPLES.exists()


@pytest.mark.usefixtures("signal_handlers")
def test_weights_that_give_no_numbers_are_one_line(model, write_params, capfd):
    path = model / "averaged.safetensors"
    save_file({name: weight * float("nan") for name, weight in load_file(path).items()}, path)
    write_params()
    with pytest.raises(SystemExit, match="1"):
        run_stage("sample", main)
    [line] = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("sample: error: x must be numbers, got a tensor of float32, ") and "with NaN: " in line
    assert not (SAMPLES / "samples.npy").exists()


@pytest.mark.parametrize("name", ["run.json", "trained_on.json"])
def test_half_of_a_record_of_the_model_is_refused_before_anything_is_drawn(model, make_params, name):
    path = model / name
    path.write_text(path.read_text()[:-3])
    with pytest.raises(StageError, match=rf"^build/model/{name} is damaged, .+: `dvc checkout --force build/model/"):
        main(make_params())
    assert not SAMPLES.exists()
