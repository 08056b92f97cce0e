"""The network that knows classes, beside the one that does not."""

import dataclasses

import pytest
import torch

from ddpm.classes import NO_CLASS
from ddpm.config import UNetConfig
from ddpm.unet import ClassEmbedding, UNet
from tests.ddpm.small_networks import TINY, awake, noise


@pytest.fixture
def config():
    return dataclasses.replace(TINY, num_classes=3)


@pytest.fixture
def unet(config):
    torch.manual_seed(0)
    return awake(UNet(config))


def test_classes_cost_a_vector_each_and_one_for_none():
    with torch.device("meta"):
        plain, conditional = UNet(), UNet(UNetConfig(num_classes=102))
    counts = [sum(parameter.numel() for parameter in unet.parameters()) for unet in (plain, conditional)]
    assert counts == [63_200_387, 63_200_387 + 103 * 256]


def test_all_other_weights_start_as_those_of_the_network_without_classes(config):
    torch.manual_seed(0)
    plain = UNet(TINY).state_dict()
    torch.manual_seed(0)
    conditional = UNet(config).state_dict()
    assert set(conditional) - set(plain) == {"class_embedding.vectors.weight"}
    for name, tensor in plain.items():
        torch.testing.assert_close(conditional[name], tensor, rtol=0, atol=0)


def test_the_embedding_of_the_class_is_added_to_that_of_the_time_step(unet):
    t, labels = torch.tensor([3, 700, 20]), torch.tensor([2, NO_CLASS, 0])
    seen = []
    time = unet.middle[0].residual.time
    unet.middle[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    unet(noise(3, 3, 8, 8), t, labels)
    vectors = unet.class_embedding.vectors.weight
    embedding = unet.time_embedding(t) + torch.stack([vectors[3], vectors[0], vectors[1]])
    torch.testing.assert_close(seen[0], time(torch.nn.functional.silu(embedding)), rtol=0, atol=1e-6)


def test_left_out_labels_are_no_class(unet):
    x, t = noise(2, 3, 8, 8), torch.tensor([5, 6])
    torch.testing.assert_close(unet(x, t), unet(x, t, torch.tensor([NO_CLASS, NO_CLASS])), rtol=0, atol=0)


def test_every_class_and_none_receive_a_gradient(unet):
    labels = torch.tensor([0, 1, 2, NO_CLASS])
    (unet(noise(4, 3, 8, 8), torch.tensor([3, 700, 20, 1]), labels) - 1.0).square().mean().backward()
    assert (unet.class_embedding.vectors.weight.grad.abs().amax(dim=1) > 1e-6).all()


def test_vectors_start_standard_normal():
    torch.manual_seed(0)
    vectors = ClassEmbedding(99, UNetConfig()).vectors.weight.detach()
    # 25,600 numbers; five standard errors.
    assert vectors.shape == (100, 256)
    assert abs(float(vectors.mean())) < 0.032
    assert float(vectors.var()) == pytest.approx(1.0, abs=0.045)


def test_labels_for_a_network_without_classes_are_an_error(awake_unet):
    with pytest.raises(ValueError, match="the network knows no classes, got labels"):
        awake_unet(noise(2, 3, 8, 8), torch.tensor([5, 6]), torch.tensor([0, 1]))


@pytest.mark.parametrize("label", [3, -2])
def test_a_label_out_of_range_is_an_error(unet, label):
    with pytest.raises(IndexError):
        unet(noise(1, 3, 8, 8), torch.tensor([5]), torch.tensor([label]))
