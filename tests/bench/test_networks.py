"""The networks that are measured do what their names say."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from bench import networks
from bench.networks import Choices, Setting, by_hand

CPU = torch.device("cpu")
TOY = Setting(batch_size=2, image_size=8, widths=(8, 16), device=CPU)


class OnlyAttention(torch.nn.Module):
    """Stands for the network, whose checks of shapes in tests are none that can be compiled."""

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
