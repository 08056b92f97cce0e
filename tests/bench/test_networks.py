"""The measured networks do what their names say, and nothing that a machine only emulates."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from bench import networks
from bench.defaults import ALL, choices_by_name
from bench.machine import LeftOutError
from bench.networks import Choices, Setting, by_hand, diffusers_loop
from bench.sample import builders_by_name, diffusers_pipeline
from ddpm import devices

CPU = torch.device("cpu")
TOY = Setting(batch_size=2, image_size=8, widths=(8, 16), device=CPU)


@pytest.fixture
def without_bfloat16(monkeypatch):
    monkeypatch.setattr(devices, "_has_fast_bfloat16", lambda _: False)


@pytest.mark.parametrize(
    "build",
    [
        partial(by_hand, TOY, Choices(bfloat16=True)),
        partial(diffusers_loop, TOY, bfloat16=True),
        partial(diffusers_pipeline, TOY, num_steps=1, bfloat16=True),
    ],
    ids=["by hand", "diffusers' training", "diffusers' sampling"],
)
def test_bfloat16_is_not_emulated(build, without_bfloat16):
    with pytest.raises(LeftOutError, match="this CPU has no bf16 instructions"):
        build()


def test_without_bfloat16_float32_is_the_default_and_has_no_own_row(without_bfloat16):
    choices = choices_by_name(CPU, is_compiled_on_cpu=False)
    assert not any(each.bfloat16 for each in choices.values())
    assert choices[ALL] == Choices(bfloat16=False) and "in float32" not in choices
    assert "ddim, float32" not in builders_by_name(TOY, num_steps=1)


class OnlyAttention(torch.nn.Module):
    """Stand-in for the network, whose shape checks in tests cannot be compiled."""

    def __init__(self, _):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x_t, _):
        query = self.weight * x_t
        return F.scaled_dot_product_attention(query, query, query)


@pytest.mark.parametrize(("others_fused", "num_graphs"), [(True, 1), (False, 2)])
def test_networks_share_a_compiled_graph_only_if_their_attention_is_alike(monkeypatch, others_fused, num_graphs):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(networks.torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(networks, "UNet", OnlyAttention)
    torch._dynamo.reset()
    for is_fused in (True, others_fused):
        by_hand(TOY, Choices(bfloat16=False, fused_attention=is_fused, compilation="default"))()
    assert len(graphs) == num_graphs
