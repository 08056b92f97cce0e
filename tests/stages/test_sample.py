"""Drawn images: a function of the model, the seed and their number."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.checkpoint import CheckpointError, load_model
from ddpm.images import grid
from stages import sample as module
from stages.sample import draw, frame_steps
from tracking.runs import _closing

SAMPLES = Path("build/samples")
CPU = torch.device("cpu")


@pytest.fixture
def drawn(published, make_params):
    """Draws with the tiny model."""

    def run(changes=None):
        wanted = make_params(changes).sample
        return draw(load_model(published, wanted.weights), wanted, CPU)

    return run


@pytest.fixture(scope="module")
def images(published, make_params):
    """What the small experiment draws."""
    pixels, frames = draw(load_model(published), make_params().sample, CPU)
    return pixels, frames


def differ_by_rounding_alone(one, other):
    # Networks compute other numbers of images by other sums.
    distance = (one.int() - other.int()).abs()
    return bool(distance.max() <= 1 and (distance > 0).float().mean() < 0.01)


@pytest.mark.parametrize(
    ("sampler", "batch_size"),
    [
        ({}, 12),
        ({}, 100),
        ({}, None),
        ({"sample.sampler": "ddpm"}, 4),
        ({"sample.sampler": "dpm_solver++"}, 4),
        ({"sample.eta": 1.0}, 4),
        ({"sample.eta": 1.0}, 1),
    ],
)
def test_the_images_do_not_depend_on_the_batch_size(drawn, sampler, batch_size):
    pixels, frames = drawn(sampler)
    other_pixels, other_frames = drawn(sampler | {"sample.batch_size": batch_size})
    assert differ_by_rounding_alone(pixels, other_pixels)
    assert all(map(differ_by_rounding_alone, frames, other_frames))


def test_a_batch_size_that_is_left_open_is_a_known_one_on_a_cpu(drawn, monkeypatch):
    batches = []
    steps_of = module.steps_of
    monkeypatch.setattr(module, "steps_of", lambda *given: batches.append(given[2]) or steps_of(*given))
    assert len(drawn({"sample.batch_size": None, "sample.num_images": 33})[0]) == 33
    assert batches == [range(32), range(32, 33)]


@pytest.mark.parametrize(("num_images", "tried"), [(5000, [1024, 512, 256, 128, 64]), (150, [150, 75]), (0, [1])])
def test_a_batch_size_that_is_left_open_is_what_the_memory_of_a_gpu_holds(published, make_params, num_images, tried):
    # A device without memory of its own stands in for the GPU.
    def unet(x, t):
        assert x.shape == (len(t), 3, 16, 16)
        sizes.append(len(x))
        if len(x) > 100:
            raise torch.OutOfMemoryError

    sizes, model = [], dataclasses.replace(load_model(published))
    unet.config = model.unet.config
    object.__setattr__(model, "unet", unet)  # the checks of types know networks alone
    assert module.fitting_batch_size(model, make_params().sample, num_images, torch.device("meta")) == tried[-1]
    assert sizes == tried


class CompiledStandIn(torch.nn.Module):
    """Another object than the network, as torch.compile returns, which notes the sizes that it would compile for."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.sizes = []

    def forward(self, x_t, *others):
        self.sizes.append(len(x_t))
        return self.network(x_t, *others)


@pytest.fixture
def compiled_networks(monkeypatch):
    """The networks of each drawing from now on, which count as compiled."""
    networks = []
    monkeypatch.setattr(
        module, "compiled", lambda network, *_: networks.append(CompiledStandIn(network)) or networks[-1]
    )
    return networks


@pytest.mark.parametrize(
    ("num_images", "batch_size", "size", "num_batches"), [(12, 5, 4, 3), (10, 4, 4, 3), (9, 8, 5, 2), (5, 32, 5, 1)]
)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_compiled_network_draws_batches_of_one_size(
    drawn, compiled_networks, num_images, batch_size, size, num_batches, sampler
):
    # Nine images in the grid: more than one batch holds, and at times all there are.
    changes = {"sample.sampler": sampler, "sample.num_grid_images": min(9, num_images), "evaluate.enabled": False}
    pixels, frames = drawn(changes | {"sample.num_images": num_images, "sample.batch_size": batch_size})
    assert compiled_networks.pop().sizes == [size] * num_batches * 6
    # The same without filling up: whole batches of as many images.
    expected, expected_frames = drawn(changes | {"sample.num_images": size * num_batches, "sample.batch_size": size})
    assert torch.equal(pixels, expected[:num_images])
    assert len(frames) == len(expected_frames) == 3
    assert all(map(torch.equal, frames, expected_frames))


@pytest.mark.parametrize("num_images", [12, 4])
def test_compiled_networks_of_several_processes_draw_their_shares_alone(
    drawn, compiled_networks, in_each_process, num_images
):
    # Of four images, five processes: the one without any calls its network not at all.
    changes = {"sample.num_images": num_images, "sample.batch_size": 2, "evaluate.enabled": False}
    changes |= {"sample.num_grid_images": min(9, num_images)}
    pixels, frames = drawn(changes)
    compiled_networks.clear()
    shares = in_each_process(module, 5, lambda: drawn(changes))
    assert differ_by_rounding_alone(torch.cat([share for share, _ in shares]), pixels)
    for number, frame in enumerate(frames):
        assert differ_by_rounding_alone(torch.cat([shown[number] for _, shown in shares]), frame)
    assert all(len(set(network.sizes)) <= 1 for network in compiled_networks) and len(compiled_networks) == 5


def test_without_compilation_nothing_is_drawn_but_what_is_asked_for(drawn, monkeypatch):
    sizes = []
    steps_of = module.steps_of
    monkeypatch.setattr(module, "steps_of", lambda *given: sizes.append(len(given[2])) or steps_of(*given))
    drawn({"sample.num_images": 12, "sample.batch_size": 5})
    assert sizes == [5, 5, 2]


@pytest.mark.parametrize("num_processes", [2, 3, 5])
@pytest.mark.parametrize("num_images", [12, 4])
def test_processes_that_draw_a_share_each_have_together_what_one_has(drawn, in_each_process, num_processes, num_images):
    # With four images, five processes: one of them has nothing to draw.
    changes = {"sample.num_images": num_images, "evaluate.enabled": False}  # four would be too few to evaluate
    pixels, frames = drawn(changes)
    shares = in_each_process(module, num_processes, lambda: drawn(changes))
    assert differ_by_rounding_alone(torch.cat([share for share, _ in shares]), pixels)
    for number, frame in enumerate(frames):
        assert differ_by_rounding_alone(torch.cat([shown[number] for _, shown in shares]), frame)


def test_more_images_begin_with_the_same(drawn, images):
    pixels, frames = drawn({"sample.num_images": 15})
    assert differ_by_rounding_alone(pixels[:12], images[0])
    assert all(map(differ_by_rounding_alone, frames, images[1]))


@pytest.mark.parametrize(
    "changes",
    [
        {"sample.seed": 1},
        {"sample.sampler": "ddpm"},
        {"sample.sampler": "dpm_solver++"},
        {"sample.num_sampling_steps": 5},
        {"sample.eta": 1.0},
        {"sample.weights": "raw"},
        {"sample.weights": "averaged_0.5", "train.extra_ema_decays": [0.5]},
    ],
)
def test_what_shapes_the_images_changes_them(drawn, images, changes):
    assert not differ_by_rounding_alone(drawn(changes)[0], images[0])


def test_weights_could_be_trained_only_while_images_are_drawn(published, make_params):
    wanted = make_params({"sample.precision": "bfloat16", "sample.num_interpolation_images": 3}).sample
    model, flags = load_model(published), []
    model.unet.register_forward_pre_hook(lambda unet, _: flags.append([p.requires_grad for p in unet.parameters()]))
    for drawing in (draw, module.interpolate):
        drawing(model, wanted, CPU)
        assert flags and all(map(all, flags)), "autocast keeps the casts of trainable weights alone"
        assert not any(parameter.requires_grad for parameter in model.unet.parameters())
        flags.clear()


def test_each_image_differs(images):
    assert len({image.numpy().tobytes() for image in images[0]}) == 12


def test_shapes_and_counts(images):
    pixels, frames = images
    assert pixels.shape == (12, 3, 16, 16) and pixels.dtype == torch.uint8
    assert [frame.shape for frame in frames] == [(4, 3, 16, 16)] * 3


def test_the_last_frame_holds_the_finished_images(images):
    pixels, frames = images
    assert torch.equal(frames[-1], pixels[:4])
    assert not differ_by_rounding_alone(frames[0], frames[-1])


def test_frames_are_kept_of_the_shown_images_alone(make_params, published, monkeypatch):
    # Ten thousand images on their way would not fit into memory.
    converted = []
    to_pixels = module.to_pixels
    monkeypatch.setattr(module, "to_pixels", lambda x: converted.append(len(x)) or to_pixels(x))
    wanted = make_params({"sample.batch_size": 2}).sample
    draw(load_model(published), wanted, CPU)
    # Two batches of shown images at three frames, and the end of each of the six batches.
    assert sum(converted) == 2 * 2 * 3 + 12


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 50, 250, 1000])
def test_shown_steps_are_distinct_and_end_with_the_last(num_steps):
    for num_frames in {2, 3, 10, 25, num_steps // 2, num_steps - 1, num_steps} & set(range(2, num_steps + 1)):
        shown = frame_steps(num_steps, num_frames)
        gaps = np.diff(shown)
        assert len(shown) == num_frames and shown[0] == 1 and shown[-1] == num_steps
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_shown_steps_by_hand():
    assert frame_steps(6, 3) == [1, 4, 6]
    assert frame_steps(4, 4) == [1, 2, 3, 4]


def test_the_stage_writes_arrays_grid_animation_and_source(model, make_params, images):
    module.main(make_params())
    assert sorted(path.name for path in SAMPLES.iterdir()) == [
        "grid.png", "reverse_process.png", "reverse_process.webp", "samples.json", "samples.npy",
    ]  # fmt: skip
    pixels = np.load(SAMPLES / "samples.npy")
    assert pixels.dtype == np.uint8 and pixels.shape == (12, 16, 16, 3)
    np.testing.assert_array_equal(pixels, images[0].permute(0, 2, 3, 1))
    # 16 pixels are enlarged sixfold, for the eye.
    shown = np.asarray(Image.open(SAMPLES / "grid.png"))
    np.testing.assert_array_equal(shown[::6, ::6], grid(images[0][:4]))
    animation = Image.open(SAMPLES / "reverse_process.webp")
    assert animation.n_frames == 3 and animation.size == (shown.shape[1], shown.shape[0])


def test_the_strip_shows_images_on_their_way_a_row_each(model, make_params):
    params = make_params({"sample.num_sampling_steps": 16, "sample.num_frames": 16, "sample.num_grid_images": 7})
    module.main(params)
    pixels, frames = draw(load_model(model), params.sample, CPU)
    strip = np.asarray(Image.open(SAMPLES / "reverse_process.png"))[::6, ::6]
    # Five rows of twelve images of 16 pixels, from the first shown step to the finished image.
    assert strip.shape == (2 + 5 * 18, 2 + 12 * 18, 3)
    for row in range(5):
        top = 2 + row * 18
        np.testing.assert_array_equal(strip[top : top + 16, 2:18], frames[0][row].permute(1, 2, 0))
        np.testing.assert_array_equal(strip[top : top + 16, -18:-2], pixels[row].permute(1, 2, 0))


@pytest.mark.parametrize("changes", [{}, {"sample.batch_size": None}, {"sample.sampler": "ddpm"}])
def test_an_interpolation_goes_from_one_image_to_another(model, make_params, changes):
    params = make_params({"sample.num_interpolation_images": 7, "sample.interpolation_ends": [5, 2]} | changes)
    module.main(params)
    strip = torch.from_numpy(np.array(Image.open(SAMPLES / "interpolation.png"))[::6, ::6])
    assert strip.shape == (20, 2 + 7 * 18, 3)
    row = torch.stack([strip[2:18, 2 + i * 18 : 18 + i * 18] for i in range(7)])
    pixels = torch.from_numpy(np.load(SAMPLES / "samples.npy"))
    assert differ_by_rounding_alone(row[0], pixels[5]) and differ_by_rounding_alone(row[-1], pixels[2])
    assert not any(differ_by_rounding_alone(one, other) for one, other in zip(row[1:], row[:-1], strict=True))


def test_large_images_are_not_enlarged(folder, make_params):
    pixels = torch.zeros(4, 3, 100, 100, dtype=torch.uint8)
    Path("build/model").mkdir(parents=True)
    Path("build/model/averaged.safetensors").write_bytes(b"")
    module.write(pixels, [pixels], [], make_params().sample)
    assert Image.open(SAMPLES / "grid.png").size == (206, 206)


@pytest.mark.parametrize("weights", ["averaged", "raw", "averaged_0.5"])
def test_the_images_name_the_weights_and_the_parameters_they_came_from(model, make_params, weights):
    params = make_params({"sample.weights": weights, "train.extra_ema_decays": [0.5]})
    module.main(params)
    source = json.loads((SAMPLES / "samples.json").read_text())
    digest = hashlib.sha256((model / f"{weights}.safetensors").read_bytes()).hexdigest()
    assert source == {"model_sha256": digest, "mlflow_run_id": "", "train_splits": ["train"]} | params.section("sample")


def test_the_same_model_gives_the_same_files(model, make_params):
    module.main(make_params())
    first = {path.name: path.read_bytes() for path in SAMPLES.iterdir()}
    module.main(make_params())
    assert {path.name: path.read_bytes() for path in SAMPLES.iterdir()} == first


def test_grid_and_files_go_to_the_run_of_the_model(model, make_params, notes, monkeypatch):
    (model / "run.json").write_text('{"mlflow_run_id": "the trained"}')
    asked = []
    monkeypatch.setattr(module, "reopened_run", lambda *arguments: asked.append(arguments) or _closing(notes))
    params = make_params()
    module.main(params)
    assert asked == [(params, "sample", "the trained")] and notes.ended == ["FINISHED"]
    ((key, step, image),) = notes.images
    assert (key, step) == ("final_samples", 0) and image.shape == (38, 38, 3)
    assert notes.files == [
        ("build/samples/grid.png", "samples"),
        ("build/samples/reverse_process.webp", "samples"),
        ("build/samples/reverse_process.png", "samples"),
    ]


def test_a_missing_model_is_one_clear_error(folder, make_params):
    with pytest.raises(CheckpointError, match="build/model holds no usable model"):
        module.main(make_params())
