"""The network: its size, its start and its limits; test_export.py compares its outputs with those of diffusers."""

import dataclasses
import math

import pytest
import torch

from ddpm.classes import NO_CLASS
from ddpm.config import UNetConfig
from ddpm.unet import ClassEmbedding, TimeEmbedding, UNet, scaled_conv, scaled_linear
from tests.ddpm.small_networks import TINY, awake, noise


def test_the_output_is_zero_at_the_start():
    out = UNet(TINY)(noise(2, 3, 8, 8), torch.tensor([0, 999]))
    assert out.shape == (2, 3, 8, 8)
    assert bool((out == 0).all())


def test_every_parameter_receives_a_gradient(awake_unet):
    x, t = noise(2, 3, 8, 8), torch.tensor([3, 700])
    (awake_unet(x, t) - noise(2, 3, 8, 8, seed=1)).square().mean().backward()
    for name, parameter in awake_unet.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("key.bias"):
            # It adds the same to all scores of a query, and softmax does not see that: its gradient is zero.
            assert parameter.grad.abs().max() < 1e-6, name
        else:
            assert parameter.grad.abs().max() > 1e-6, name


def test_an_output_depends_on_its_time_step_and_not_on_the_batch(awake_unet):
    x, t = noise(1, 3, 8, 8).repeat(3, 1, 1, 1), torch.tensor([0, 500, 500])
    x[2] += 1.0
    together = awake_unet(x, t)
    for one, other in ((0, 1), (1, 2)):
        assert (together[one] - together[other]).abs().max() > 1e-2
    for i in range(3):
        torch.testing.assert_close(awake_unet(x[i : i + 1], t[i : i + 1])[0], together[i], rtol=0, atol=1e-4)
    x[0] = 100.0
    torch.testing.assert_close(awake_unet(x, t)[1:], together[1:], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 3), (2, 6, 3), (16, 4, 1)])
def test_output_has_the_shape_of_the_input(height, width, channels):
    unet = UNet(dataclasses.replace(TINY, image_channels=channels))
    assert unet(noise(2, channels, height, width), torch.tensor([0, 1])).shape == (2, channels, height, width)


@pytest.mark.parametrize(("height", "width"), [(7, 8), (8, 7)])
def test_an_image_that_does_not_halve_is_an_error(height, width):
    with pytest.raises(ValueError, match=f"image size must be a multiple of 2, got {height}x{width}"):
        UNet(TINY)(noise(1, 3, height, width), torch.tensor([0]))


def test_dropout_acts_in_training_alone():
    unet = awake(UNet(dataclasses.replace(TINY, dropout=0.5)))
    x, t = noise(1, 3, 8, 8), torch.tensor([5])
    torch.testing.assert_close(unet(x, t), unet(x, t), rtol=0, atol=0)
    unet.train()
    assert (unet(x, t) - unet(x, t)).abs().max() > 1e-3


def test_time_embedding_equals_the_formula():
    dim, times = 8, [0, 1, 37, 999]
    embedding = awake(TimeEmbedding(dim))
    sinusoids = []
    for t in times:
        # Vaswani et al. 2017, section 3.5: frequencies from 1 down to 1/10000.
        angles = [t * 10_000.0 ** (-i / (dim // 2 - 1)) for i in range(dim // 2)]
        sinusoids.append([*map(math.sin, angles), *map(math.cos, angles)])
    hidden = torch.tensor(sinusoids) @ embedding.first.weight.T + embedding.first.bias
    expected = (hidden * torch.sigmoid(hidden)) @ embedding.second.weight.T + embedding.second.bias
    # float32 keeps an angle of 999 to 6e-5.
    torch.testing.assert_close(embedding(torch.tensor(times)), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_initial_weights_are_uniform_with_the_scaled_variance(scale):
    torch.manual_seed(0)
    conv = scaled_conv(32, 64, kernel_size=3, scale=scale)
    linear = scaled_linear(100, 200, scale=scale)
    for layer, fan_in, fan_out in ((conv, 32 * 9, 64 * 9), (linear, 100, 200)):
        variance = scale / ((fan_in + fan_out) / 2)
        bound = math.sqrt(3.0 * variance)  # of a uniform distribution around zero with this variance
        weights = layer.weight.detach()
        assert 0.99 * bound < weights.max() <= bound and -bound <= weights.min() < -0.99 * bound
        # 18,432 and 20,000 weights: the variance of a uniform sample is known to 0.7 %; five times that.
        assert float(weights.var()) == pytest.approx(variance, rel=0.035)
        assert bool((layer.bias == 0).all())


def test_layers_that_end_a_residual_branch_start_at_zero():
    unet = UNet(TINY)
    zero = {name for name, parameter in unet.named_parameters() if name.endswith("weight") and not parameter.any()}
    ends = ("conv_2.weight", "project.weight", "last_conv.weight")
    assert zero == {name for name, _ in unet.named_parameters() if name.endswith(ends)}


@pytest.fixture
def conditional():
    """A network that knows three classes."""
    torch.manual_seed(0)
    return awake(UNet(dataclasses.replace(TINY, num_classes=3)))


def test_the_published_network_has_63_200_387_parameters_and_classes_a_vector_each():
    # The count of the Keras example. On the meta device no memory is filled.
    with torch.device("meta"):
        plain, conditional = UNet(), UNet(UNetConfig(num_classes=102))
    counts = [sum(parameter.numel() for parameter in unet.parameters()) for unet in (plain, conditional)]
    assert counts == [63_200_387, 63_200_387 + 103 * 256]


def test_all_other_weights_start_as_those_of_the_network_without_classes():
    torch.manual_seed(0)
    plain = UNet(TINY).state_dict()
    torch.manual_seed(0)
    conditional = UNet(dataclasses.replace(TINY, num_classes=3)).state_dict()
    assert set(conditional) - set(plain) == {"class_embedding.vectors.weight"}
    for name, tensor in plain.items():
        torch.testing.assert_close(conditional[name], tensor, rtol=0, atol=0)


def test_the_embedding_of_the_class_is_added_to_that_of_the_time_step(conditional):
    t, labels = torch.tensor([3, 700, 20]), torch.tensor([2, NO_CLASS, 0])
    seen = []
    time = conditional.middle[0].residual.time
    conditional.middle[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    conditional(noise(3, 3, 8, 8), t, labels)
    vectors = conditional.class_embedding.vectors.weight
    embedding = conditional.time_embedding(t) + torch.stack([vectors[3], vectors[0], vectors[1]])
    torch.testing.assert_close(seen[0], time(torch.nn.functional.silu(embedding)), rtol=0, atol=1e-6)


def test_left_out_labels_are_no_class(conditional):
    x, t = noise(2, 3, 8, 8), torch.tensor([5, 6])
    torch.testing.assert_close(conditional(x, t), conditional(x, t, torch.tensor([NO_CLASS, NO_CLASS])), rtol=0, atol=0)


def test_every_class_and_none_receive_a_gradient(conditional):
    labels = torch.tensor([0, 1, 2, NO_CLASS])
    (conditional(noise(4, 3, 8, 8), torch.tensor([3, 700, 20, 1]), labels) - 1.0).square().mean().backward()
    assert (conditional.class_embedding.vectors.weight.grad.abs().amax(dim=1) > 1e-6).all()


def test_vectors_start_standard_normal():
    torch.manual_seed(0)
    vectors = ClassEmbedding(99, UNetConfig()).vectors.weight.detach()
    # 25,600 numbers; five standard errors.
    assert vectors.shape == (100, 256)
    assert abs(float(vectors.mean())) < 0.032
    assert float(vectors.var()) == pytest.approx(1.0, abs=0.045)


@pytest.mark.parametrize("label", [3, -2])
def test_a_label_out_of_range_is_an_error(conditional, label):
    with pytest.raises(IndexError):
        conditional(noise(1, 3, 8, 8), torch.tensor([5]), torch.tensor([label]))
