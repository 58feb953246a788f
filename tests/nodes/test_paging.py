"""Networks of a host's layers: what they compute, and where."""

import torch
from torch import nn

from imagen_nodes.imagen_core import (
    ADMConfig,
    EncodedPrompt,
    Stage,
    StageConfig,
    TextEmbedding,
    sample_base,
)
from imagen_nodes.nodes.host import paging

CONFIG = ADMConfig(
    (32, 64),
    (1, 1),
    (False, True),
    text_dim=32,
    context_dim=64,
    time_dim=64,
    head_dim=16,
    pool_heads=4,
)


def operations():
    """Layers that bring their weights to the input, and tell of it."""
    brought = set()

    class Bringing(nn.Module):
        def forward(self, x):
            brought.add(self)
            return super().forward(x)

    made = {name: type(name, (Bringing, getattr(nn, name)), {}) for name in paging.LAYERS}
    return type("Operations", (), made), brought


def sampled(stage):
    states = TextEmbedding(
        torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0)), torch.ones(1, 5) > 0
    )
    return sample_base(stage, EncodedPrompt(states, states), width=16, height=16, steps=2, seed=3)


def test_a_host_s_layers_compute_the_same_and_bring_every_weight():
    torch.manual_seed(0)
    stage = Stage(StageConfig("base", 64, 1, CONFIG))
    for parameter in stage.unet.parameters():
        nn.init.normal_(parameter, std=0.05)
    before = sampled(stage)
    own, brought = operations()
    names = stage.unet.state_dict().keys()
    paging.take_operations(stage.unet, own)
    assert torch.equal(sampled(stage), before)
    assert stage.unet.state_dict().keys() == names
    weighty = {m for m in stage.unet.modules() if "weight" in m._parameters}
    assert brought == weighty
    kinds = {type(m) for m in stage.unet.modules()}
    paging.take_operations(stage.unet, own)
    assert {type(m) for m in stage.unet.modules()} == kinds


def test_a_network_computes_where_its_host_says():
    stage = Stage(StageConfig("base", 64, 1, CONFIG))
    assert stage.device == torch.device("cpu")
    stage.unet.__dict__["runs_on"] = torch.device("meta")
    assert stage.device == torch.device("meta")
    text = TextEmbedding(torch.zeros(1, 5, 32), torch.ones(1, 5) > 0)
    with torch.device("meta"):
        twin = Stage(stage.config)
    twin.unet.__dict__["runs_on"] = torch.device("meta")
    assert twin.unet.prepare(text).pooled.device == torch.device("meta")
