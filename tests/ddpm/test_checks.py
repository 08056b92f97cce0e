"""What is no image or no feature is refused in one line that says what was got, what is allowed, and what to do."""

import numpy as np
import pytest
import torch

from ddpm import (
    GaussianDiffusion,
    ImageNoise,
    SamplingConfig,
    TrainingImages,
    UNet,
    guided,
    linear_betas,
    sample,
    train,
)
from ddpm.features import extract_features
from ddpm.images import class_grid, enlarge, grid, save_animation, save_png, to_model_range, to_pixels
from ddpm.memorisation import nearest_images
from ddpm.metrics import frechet_distance, kernel_distance, precision_recall
from ddpm.samplers import InterpolatedNoise
from tests.ddpm.small_networks import TINY
from tests.ddpm.small_training import SHORT, make_images, start

pytestmark = pytest.mark.usefixtures("without_shape_checks")

IMAGES = torch.arange(4 * 3 * 8 * 8, dtype=torch.uint8).reshape(4, 3, 8, 8)
FLOATS = torch.linspace(-1.0, 1.0, IMAGES.numel()).reshape(IMAGES.shape)
META = torch.device("meta")
DIFFUSION = GaussianDiffusion(linear_betas(10))
FEATURES = torch.linspace(0.0, 1.0, 24).reshape(6, 4)


@pytest.mark.parametrize(
    ("images", "got", "steps"),
    [
        (FLOATS, "a tensor of float32, shape (4, 3, 8, 8), values -1 … 1", ["ddpm.images.to_pixels"]),
        (FLOATS.abs().half(), "float16", [".mul(255).round().to(torch.uint8)"]),
        (FLOATS.abs() * 255.0, "values 0.", [".round().to(torch.uint8)"]),
        (FLOATS * 255.0, "values -255 … 255", ["bring the values to 0 … 255"]),
        (FLOATS * float("nan"), "float32, shape (4, 3, 8, 8), with NaN", ["bring the values to 0 … 255"]),
        (FLOATS.clone().requires_grad_(), "float32", ["ddpm.images.to_pixels"]),
        (IMAGES.long(), "int64, shape (4, 3, 8, 8), values 0 … 255", [".to(torch.uint8)"]),
        (IMAGES.permute(0, 2, 3, 1), "uint8, shape (4, 8, 8, 3)", [".permute(0, 3, 1, 2)"]),
        (FLOATS.permute(0, 2, 3, 1), "shape (4, 8, 8, 3)", [".permute(0, 3, 1, 2)", "ddpm.images.to_pixels"]),
        (IMAGES[0], "shape (3, 8, 8)", ["[None] for the axis of images"]),
        (IMAGES[:, 0], "shape (4, 8, 8)", ["[None] for the axis of images"]),
        (IMAGES[:, :, :0], "a tensor of uint8, shape (4, 3, 0, 8)", []),
        (IMAGES.numpy(), "a NumPy array of uint8, shape (4, 3, 8, 8), values 0 … 255", ["torch.from_numpy(images)"]),
        (
            np.zeros((2, 8, 8, 3), np.uint16),
            "a NumPy array of uint16, shape (2, 8, 8, 3), values 0 … 0",
            ["torch.from_numpy(images)", ".permute(0, 3, 1, 2)", ".to(torch.uint8)"],
        ),
        (IMAGES.bool(), "bool", [".mul(255).round().to(torch.uint8)"]),
        (np.array(["a.png"]), "a NumPy array of <U5, shape (1,)", []),
        ([IMAGES[0]], "got list", []),
        (None, "got NoneType", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_that_are_not_bytes_in_their_place_are_refused_with_the_way_out(images, got, steps):
    with pytest.raises(ValueError, match=r"^images must be a uint8 tensor of shape \(images, channels, h") as refused:
        TrainingImages(images, batch_size=2, seed=0)
    message = str(refused.value)
    assert got in message and all(step in message for step in steps) and "\n" not in message
    if not steps:
        assert message.endswith(got)


def test_bytes_of_any_layout_in_memory_and_number_of_channels_are_taken():
    for images in (IMAGES, IMAGES[:, :1], IMAGES.flip(3)[::2], IMAGES.contiguous(memory_format=torch.channels_last)):
        found = TrainingImages(images, batch_size=2, seed=0, random_flips=False)
        torch.testing.assert_close(found.batch(0), to_model_range(images[found.indices(0)]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_model_range(FLOATS), r"^pixels must be a uint8 tensor .*; make them so: ddpm\.images\.to_pixels$"),
        (lambda: to_pixels(IMAGES), r"^x must be a float tensor .*; make them so: ddpm\.images\.to_model_range$"),
        (lambda: to_pixels(FLOATS * float("nan")), "^x must be numbers, got .* with NaN"),
        (lambda: grid(FLOATS), r"^pixels must be .*\(images, 1 or 3, height, width\), got .* float32"),
        (lambda: grid(IMAGES[:, [0, 0, 0, 0]]), r"got a tensor of uint8, shape \(4, 4, 8, 8\)"),
        (lambda: class_grid(FLOATS, ["rose"]), "^pixels must be a uint8 tensor"),
        (lambda: enlarge(IMAGES, 2), "^picture must be a NumPy array of uint8, .* got a tensor of uint8"),
        (lambda: save_png(np.zeros((8, 8, 3)), "x.png"), "^picture must be .* got a NumPy array of float64"),
        (lambda: save_animation([IMAGES[0]], "x.webp"), "^picture must be a NumPy array"),
        (lambda: next(extract_features(None, FLOATS, 2, "cpu")), r"^pixels must be .*\(images, 3, height, width\)"),
        (lambda: UNet(TINY)(IMAGES, torch.zeros(4)), "^x_t must be a float tensor .*to_model_range$"),
        (lambda: UNet(TINY)(FLOATS[:, :1], torch.zeros(4)), r"^x_t must be .*\(images, 3, .* shape \(4, 1, 8, 8\)"),
        (lambda: TrainingImages(IMAGES, 2, 0, positions=torch.tensor([0, -1])), r"^positions .* in 0 … 3, .* -1 … 0"),
        (lambda: TrainingImages(IMAGES, 2, 0, positions=torch.ones(4).bool()), "^positions must be .* of bool"),
        (lambda: TrainingImages(IMAGES, 2, 0, labels=torch.ones(4)), "^labels must be an int64 vector, got .*float32"),
        (lambda: frechet_distance(FEATURES / 0.0, FEATURES), "^real must be a tensor of finite floats"),
        (lambda: kernel_distance(FEATURES, FEATURES.numpy()), "^fake must be .* got a NumPy array of float32"),
        (lambda: precision_recall(FEATURES, FEATURES.long()), "^fake must be .* got a tensor of int64"),
        (lambda: frechet_distance(FEATURES, FEATURES[:, :3]), "as many features, got 4 and 3"),
        (lambda: nearest_images(FEATURES[0], FEATURES), r"^features must be .* shape \(4,\)"),
        (lambda: nearest_images(FEATURES, FEATURES * float("nan")), "^training must be .* with NaN"),
        (lambda: guided(UNet(TINY), [0, 1]), "^labels must be an int64 vector, got list"),
        (lambda: GaussianDiffusion(np.full(5, 0.1)), r"^betas must .* in \(0, 1\), got a NumPy array"),
        (lambda: GaussianDiffusion(torch.ones(5)), r"^betas .* shape \(5,\), values 1 … 1"),
        (lambda: next(train(start(), make_images(device=META), DIFFUSION, SHORT)), "come on meta and .* on cpu"),
        (lambda: next(train(start(image_channels=1), make_images(), DIFFUSION, SHORT)), r"^x_t .*\(images, 1, height"),
        (lambda: SamplingConfig(seed=np.int64(-1)), "^seed must be at least 0 and at most .*, got -1$"),
        (lambda: InterpolatedNoise(0, (0, 1), torch.tensor([1.5]), (3, 8, 8)), r"^fractions must lie in \[0, 1\]"),
    ],
)  # fmt: skip
def test_every_door_refuses_what_it_would_take_for_something_else(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "network",
    [
        lambda x_t, _t: x_t[:, :1],  # would be broadcast
        lambda x_t, _t: torch.cat([x_t, x_t], dim=1),  # with a learnt variance
        lambda x_t, _t: {"sample": x_t},
    ],
)
def test_a_network_that_gives_no_image_for_each_image_is_refused(network):
    message = r"^the network must give a float tensor of the shape that it was given, \(4, 3, 8, 8\), got"
    with pytest.raises(ValueError, match=message):
        DIFFUSION.losses(network, FLOATS, torch.arange(4), FLOATS)
    with pytest.raises(ValueError, match=message):
        sample("ddim", network, DIFFUSION, ImageNoise(0, range(4), (3, 8, 8)), 2)


@pytest.mark.parametrize(
    ("x_0", "t", "eps", "message"),
    [
        (IMAGES, torch.arange(4), FLOATS, "^x_0 must be a float tensor .*to_model_range"),
        (FLOATS, torch.ones(4).bool(), FLOATS, "^t must be an int64 vector, got a tensor of bool"),
        (FLOATS, torch.tensor([3]), FLOATS, "got 1 time steps"),
        (FLOATS, torch.arange(4), FLOATS[:, :1], r"noise of shape \(4, 1, 8, 8\) and images of shape"),
    ],
)
def test_noise_is_added_image_by_image(diffusion, x_0, t, eps, message):
    with pytest.raises(ValueError, match=message):
        diffusion.q_sample(x_0, t, eps)
