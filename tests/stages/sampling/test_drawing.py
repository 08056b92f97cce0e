"""Drawn images: a function of the model, the seed, their number and their class."""

import numpy as np
import pytest
import torch

from ddpm import ImageNoise, guided, sample
from ddpm.images import to_pixels
from ddpm.published import load_model
from stages.sampling import drawing
from stages.sampling.drawing import choose_batch_size, choose_steps, draw_interpolation, draw_samples
from tests.small_experiment import CONDITIONAL, differ_by_rounding

CPU = torch.device("cpu")
FEW = {"evaluate.enabled": False}
"""Allows fewer images than an evaluation needs."""


@pytest.fixture(scope="module")
def draw(published, published_conditional, make_params):
    """Draws with one of the tiny models, and notes the sizes of the batches given to its network."""

    def run(changes=None, sizes=None):
        params = make_params(changes)
        folder = published_conditional if params.train.class_conditional else published
        model = load_model(folder, params.sample.weights)
        if sizes is not None:
            model.unet.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        return draw_samples(model, params.sample, CPU)

    return run


@pytest.fixture(scope="module")
def images(draw):
    """The images and frames of the small experiment."""
    return draw()


def assert_alike(drawn, others):
    """The images and all frames are the same, but for rounding."""
    (pixels, frames), (other_pixels, other_frames) = drawn, others
    assert len(frames) == len(other_frames) and differ_by_rounding(pixels, other_pixels)
    assert all(map(differ_by_rounding, frames, other_frames))


@pytest.mark.parametrize(
    ("sampler", "batch_size"),
    [
        ({}, 12),
        ({}, None),
        ({"sample.sampler": "ddpm"}, 4),
        ({"sample.eta": 1.0}, 1),
        (CONDITIONAL | {"sample.sampler": "dpm_solver++", "sample.guidance_scale": 2.0}, 12),
    ],
)
def test_the_images_do_not_depend_on_the_batch_size(draw, sampler, batch_size):
    assert_alike(draw(sampler), draw(sampler | {"sample.batch_size": batch_size}))


@pytest.mark.parametrize(("num_images", "batch_size", "sizes"), [(33, None, [32, 1]), (12, 5, [5, 5, 2])])
def test_on_a_cpu_batches_have_the_given_or_a_fixed_size(draw, num_images, batch_size, sizes):
    found = []
    pixels, _ = draw({"sample.batch_size": batch_size, "sample.num_images": num_images}, found)
    assert len(pixels) == num_images and found == [size for size in sizes for _ in range(6)]


@pytest.mark.parametrize(
    ("guidance_scale", "num_images", "tried"),
    [(1.0, 5000, [1024, 512, 256, 128, 64]), (1.0, 150, [150, 75]), (1.0, 0, [1]), (2.0, 60, [120, 60])],
)
def test_a_gpus_memory_decides_on_the_batch_size(published_conditional, make_params, guidance_scale, num_images, tried):
    # A device without memory of its own stands in for the GPU. Guidance doubles the batch.
    def limit(_network, given):
        sizes.append(len(given[0]))
        if sizes[-1] > 100:
            raise torch.OutOfMemoryError

    sizes, model = [], load_model(published_conditional)
    model.unet.to("meta").register_forward_pre_hook(limit)
    object.__setattr__(model.diffusion, "betas", model.diffusion.betas.to("meta"))
    params = make_params(CONDITIONAL | {"sample.guidance_scale": guidance_scale}).sample
    assert choose_batch_size(model, params, num_images, torch.device("meta")) * guidance_scale == tried[-1]
    assert sizes == tried


class CompiledStandIn(torch.nn.Module):
    """Another object than the network, as torch.compile returns, which notes the sizes that it would compile for."""

    def __init__(self, network):
        super().__init__()
        self.network, self.sizes = network, []

    def forward(self, x_t, *others):
        self.sizes.append(len(x_t))
        return self.network(x_t, *others)


@pytest.fixture
def compiled_networks(monkeypatch):
    """The networks of each drawing from now on, which count as compiled."""

    def stand_in(network, *_):
        networks.append(CompiledStandIn(network))
        return networks[-1]

    networks = []
    monkeypatch.setattr(drawing, "compile_network", stand_in)
    return networks


@pytest.mark.parametrize(
    ("num_images", "batch_size", "size", "num_batches"), [(12, 5, 4, 3), (10, 4, 4, 3), (9, 8, 5, 2), (5, 32, 5, 1)]
)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_compiled_network_draws_batches_of_one_size(
    draw, compiled_networks, num_images, batch_size, size, num_batches, sampler
):
    # Nine images in the grid: more than one batch holds, and at times all there are.
    changes = FEW | {"sample.sampler": sampler, "sample.num_grid_images": min(9, num_images)}
    pixels, frames = draw(changes | {"sample.num_images": num_images, "sample.batch_size": batch_size})
    assert compiled_networks.pop().sizes == [size] * num_batches * 6
    # The same without filling up: whole batches of as many images.
    expected, expected_frames = draw(changes | {"sample.num_images": size * num_batches, "sample.batch_size": size})
    assert torch.equal(pixels, expected[:num_images])
    assert all(map(torch.equal, frames, expected_frames)) and len(frames) == len(expected_frames) == 3


@pytest.mark.parametrize("changes", [{}, CONDITIONAL | {"sample.classes": ["rose", 1], "sample.guidance_scale": 2.0}])
@pytest.mark.parametrize(("num_processes", "num_images"), [(3, 12), (5, 4)])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_shares_of_several_processes_are_together_the_whole(
    draw, in_each_process, request, changes, num_processes, num_images, is_compiled
):
    # Of four images, five processes: one of them has nothing to draw.
    networks = request.getfixturevalue("compiled_networks") if is_compiled else []
    changes = FEW | changes | {"sample.num_images": num_images, "sample.batch_size": 2}
    whole = draw(changes)
    networks.clear()
    shares = in_each_process(drawing, num_processes, lambda: draw(changes))
    frames = [torch.cat([shown[number] for _, shown in shares]) for number in range(3)]
    assert_alike((torch.cat([pixels for pixels, _ in shares]), frames), whole)
    assert all(len(set(network.sizes)) <= 1 for network in networks)


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
def test_each_setting_changes_the_images(draw, images, changes):
    assert not differ_by_rounding(draw(changes)[0], images[0])


@pytest.mark.parametrize(
    ("classes", "labels", "guidance_scale"),
    [(None, [0, 1, 2], 1.0), (["rose"], [2], 0.0), (["rose", 1, "nan"], [2, 0, 1], 2.5)],
)
def test_images_have_the_given_classes_in_turn(draw, published_conditional, classes, labels, guidance_scale):
    pixels, frames = draw(CONDITIONAL | {"sample.classes": classes, "sample.guidance_scale": guidance_scale})
    model, all_labels = load_model(published_conditional), torch.tensor([labels[i % len(labels)] for i in range(12)])
    predict = guided(model.unet, all_labels, guidance_scale)
    expected = to_pixels(sample("ddim", predict, model.diffusion, ImageNoise(0, range(12), (3, 16, 16)), 6))
    assert differ_by_rounding(pixels, expected) and torch.equal(frames[-1], pixels[:4])
    # Class and scale both matter.
    others = [{"sample.guidance_scale": 3.0}, {"sample.classes": [5], "sample.guidance_scale": 1.0}]
    assert not any(differ_by_rounding(draw(CONDITIONAL | changes)[0], pixels) for changes in others)


def test_images_are_drawn_in_the_given_precision_with_weights_cast_once(published, make_params):
    def note(unet, _):
        seen.add((torch.is_autocast_enabled("cpu"), all(parameter.requires_grad for parameter in unet.parameters())))

    params = make_params({"sample.precision": "bfloat16", "sample.num_interpolation_images": 3}).sample
    for draw in (draw_samples, draw_interpolation):
        model, seen = load_model(published), set()
        model.unet.register_forward_pre_hook(note)
        draw(model, params, CPU)
        assert seen == {(True, True)}, "autocast caches the casts of trainable weights only"
        assert not any(parameter.requires_grad for parameter in model.unet.parameters())


def test_images_differ_and_more_images_begin_with_the_same(draw, images):
    pixels, frames = images
    assert pixels.shape == (12, 3, 16, 16) and pixels.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in pixels}) == 12
    # Of ten thousand images only the shown ones are kept on their way.
    assert [frame.shape for frame in frames] == [(4, 3, 16, 16)] * 3
    assert torch.equal(frames[-1], pixels[:4]) and not differ_by_rounding(frames[0], frames[-1])
    more_pixels, more_frames = draw({"sample.num_images": 15})
    assert_alike((more_pixels[:12], more_frames), images)


@pytest.mark.parametrize("num_steps", [2, 3, 7, 50, 1000])
def test_shown_steps_are_even_and_end_with_the_last(num_steps):
    for num_shown in {2, 3, 10, 25, num_steps // 2, num_steps - 1, num_steps} & set(range(2, num_steps + 1)):
        shown = choose_steps(num_steps, num_shown)
        gaps = np.diff(shown)
        assert len(shown) == num_shown and shown[0] == 1 and shown[-1] == num_steps
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
    assert choose_steps(6, 3) == [1, 4, 6]
