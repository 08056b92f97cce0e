"""Drawing from a model that knows classes: asked by name, guided, labelled."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from contract.errors import StageError
from ddpm import ImageNoise, guided, sample
from ddpm.checkpoint import load_model
from ddpm.images import class_grid, grid, to_pixels
from stages import sample as module
from stages.sample import draw
from tracking.runs import _closing

SAMPLES = Path("build/samples")
CPU = torch.device("cpu")
# Of a dataset that does not tell its classes beforehand.
CONDITIONAL = {"train.class_conditional": True, "download.dataset": "folder", "download.source": "flowers"}


@pytest.fixture
def drawn(published_conditional, make_params):
    """Draws with the tiny model that knows the classes 3 "01", 5 "nan" and 8 "rose"."""

    def run(changes=None):
        wanted = make_params(CONDITIONAL | (changes or {})).sample
        return draw(load_model(published_conditional), wanted, CPU)

    return run


def by_hand(folder, labels, guidance_scale):
    model = load_model(folder)
    labels = torch.tensor([labels[number % len(labels)] for number in range(12)])
    noise = ImageNoise(0, range(12), (3, 16, 16))
    return to_pixels(sample("ddim", guided(model.unet, labels, guidance_scale), model.diffusion, noise, 6))


def differ_by_rounding_alone(one, other):
    # Networks compute other numbers of images by other sums.
    distance = (one.int() - other.int()).abs()
    return bool(distance.max() <= 1 and (distance > 0).float().mean() < 0.01)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize(("classes", "labels"), [(None, [0, 1, 2]), (["rose"], [2]), (["rose", 3, "nan"], [2, 0, 1])])
def test_images_have_the_asked_classes_in_turn(drawn, published_conditional, classes, labels, guidance_scale):
    pixels, frames = drawn({"sample.classes": classes, "sample.guidance_scale": guidance_scale})
    assert differ_by_rounding_alone(pixels, by_hand(published_conditional, labels, guidance_scale))
    assert torch.equal(frames[-1], pixels[:4])


def test_class_and_scale_change_the_images(drawn):
    drawn_images = [
        drawn(changes)[0]
        for changes in (
            {},
            {"sample.classes": ["rose"]},
            {"sample.guidance_scale": 3.0},
            {"sample.guidance_scale": 0.0},
        )
    ]
    for number, one in enumerate(drawn_images):
        assert not any(differ_by_rounding_alone(one, other) for other in drawn_images[:number])


@pytest.mark.parametrize("num_processes", [2, 5])
def test_processes_that_draw_a_share_each_have_together_what_one_has(drawn, in_each_process, num_processes):
    changes = {"sample.guidance_scale": 2.0, "sample.classes": ["rose", 3]}
    pixels, _ = drawn(changes)
    shares = in_each_process(module, num_processes, lambda: drawn(changes))
    assert differ_by_rounding_alone(torch.cat([share for share, _ in shares]), pixels)


@pytest.mark.parametrize("sampler", [{"sample.sampler": "ddpm"}, {"sample.sampler": "dpm_solver++"}])
def test_the_images_do_not_depend_on_the_batch_size(drawn, sampler):
    changes = sampler | {"sample.guidance_scale": 2.0}
    assert differ_by_rounding_alone(drawn(changes)[0], drawn(changes | {"sample.batch_size": 12})[0])


def test_the_memory_of_a_gpu_is_tried_with_the_doubled_batch_of_guidance(published_conditional, make_params):
    # A device without memory of its own stands in for the GPU.
    model, sizes = load_model(published_conditional), []

    def unet(x, t, labels):
        assert len(x) == len(t) == len(labels)
        sizes.append(len(x))
        if len(x) > 100:
            raise torch.OutOfMemoryError
        return x

    unet.config = model.unet.config
    object.__setattr__(model, "unet", unet)  # the checks of types know networks alone
    object.__setattr__(model.diffusion, "betas", model.diffusion.betas.to("meta"))
    wanted = make_params(CONDITIONAL | {"sample.guidance_scale": 2.0}).sample
    assert module.fitting_batch_size(model, wanted, 60, torch.device("meta")) == 30
    assert sizes == [120, 60]


def test_the_grid_has_a_row_for_each_class_with_its_name(conditional_model, make_params):
    module.main(make_params(CONDITIONAL | {"sample.num_grid_images": 8, "sample.classes": ["rose", 3]}))
    pixels = torch.from_numpy(np.load(SAMPLES / "samples.npy")).permute(0, 3, 1, 2)
    shown = np.asarray(Image.open(SAMPLES / "grid.png"))
    np.testing.assert_array_equal(shown, class_grid(pixels[:8], ["rose", "01"], scale=6))
    # Rows of four images of 16 pixels.
    width = 6 * (2 + 4 * 18)
    np.testing.assert_array_equal(shown[: 6 * 20, -width:][::6, ::6], grid(pixels[0:8:2], columns=4))
    np.testing.assert_array_equal(shown[6 * 20 :, -width:][::6, ::6], grid(pixels[1:8:2], columns=4))


def test_the_class_of_each_image_is_written_beside_it(conditional_model, make_params):
    params = make_params(CONDITIONAL | {"sample.classes": ["Rose", 3]})
    module.main(params)
    table = pd.read_csv(SAMPLES / "classes.csv", dtype={"class_name": str}, keep_default_na=False)
    assert list(table.columns) == ["image", "class_number", "class_name"]
    assert list(table["image"]) == list(range(12))
    assert list(table["class_number"]) == [8, 3] * 6 and list(table["class_name"]) == ["rose", "01"] * 6
    source = json.loads((SAMPLES / "samples.json").read_text())
    assert source["classes"] == ["Rose", 3] and source["guidance_scale"] == 1.0


def test_strip_and_interpolation_name_their_classes(conditional_model, make_params):
    params = make_params(
        CONDITIONAL
        | {"sample.num_interpolation_images": 5, "sample.interpolation_ends": [2, 5], "sample.guidance_scale": 2.0}
    )
    module.main(params)
    pixels, frames = draw(load_model(conditional_model), params.sample, CPU)
    strip = np.asarray(Image.open(SAMPLES / "reverse_process.png"))
    in_turn = torch.cat([frame[:4] for frame in frames])
    np.testing.assert_array_equal(strip, class_grid(in_turn, ["01", "nan", "rose", "01"], scale=6))
    # Images 2 and 5 are of the third class, and so are those between them.
    row = np.asarray(Image.open(SAMPLES / "interpolation.png"))
    width = 6 * (2 + 5 * 18)
    ends = torch.tensor(row[:, -width:][::6, ::6][2:18])[:, [*range(2, 18), *range(74, 90)]]
    expected = torch.cat([pixels[2], pixels[5]], dim=2).permute(1, 2, 0)
    assert differ_by_rounding_alone(ends, expected)
    caption = class_grid(pixels[:1], ["rose"], scale=6)[:, : -6 * 20]
    np.testing.assert_array_equal(row[:, :-width], caption)


def test_the_labelled_grid_and_the_classes_go_to_the_run(conditional_model, make_params, notes, monkeypatch):
    monkeypatch.setattr(module, "reopened_run", lambda *_: _closing(notes))
    module.main(make_params(CONDITIONAL | {"sample.num_interpolation_images": 3}))
    ((key, _, image),) = notes.images
    assert key == "final_samples"
    np.testing.assert_array_equal(image, np.asarray(Image.open(SAMPLES / "grid.png")))
    assert [Path(path).name for path, _ in notes.files] == [
        "grid.png", "reverse_process.webp", "reverse_process.png", "classes.csv", "interpolation.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["ross"], r"build/model cannot be asked for this: unknown class 'ross'; did you mean rose \(8\)\?"),
        ([4], r"unknown class 4; the model knows 01 \(3\), nan \(5\), rose \(8\)"),
    ],
)
def test_an_unknown_class_is_refused_before_anything_is_drawn(conditional_model, make_params, classes, message):
    with pytest.raises(StageError, match=message):
        module.main(make_params(CONDITIONAL | {"sample.classes": classes}))
    assert not SAMPLES.exists()


@pytest.mark.parametrize("changes", [{"sample.classes": ["rose"]}, {"sample.guidance_scale": 2.0}])
def test_a_model_that_was_trained_without_classes_refuses_them(model, make_params, changes):
    # As where parameters have changed, and the stage is run without the training before it.
    with pytest.raises(StageError, match="build/model cannot be asked for this: the model knows no classes"):
        module.main(make_params(CONDITIONAL | changes))
