"""What a trace tells of the threshold, and that asking changes nothing."""

import pytest
import torch

from imagen_nodes.imagen_core import (
    PRESETS,
    EncodedPrompt,
    Guidance,
    Stage,
    StageConfig,
    TextEmbedding,
    Trace,
    sample_base,
)
from imagen_nodes.imagen_core.diffusion.guidance import dynamic_bound


@pytest.fixture(scope="module")
def stage():
    torch.manual_seed(0)
    made = Stage(StageConfig("base", 16, 1, PRESETS["tiny-base"]))
    with torch.no_grad():
        for parameter in made.unet.parameters():
            parameter.normal_(std=0.2)
    return made


@pytest.fixture(scope="module")
def text():
    states, null = torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 5, dtype=torch.bool)
    return EncodedPrompt(TextEmbedding(states, mask), TextEmbedding(null, mask))


def test_a_level_holds_threshold_and_clipped_fraction_of_each_picture():
    x0 = torch.tensor([[0.1, 0.5, 2.0, 4.0], [0.0, 0.1, 0.2, 0.3]]).reshape(2, 1, 2, 2)
    trace = Trace()
    Guidance(threshold="dynamic", percentile=0.5).apply_threshold(
        x0, lambda *told: trace.record(0, *told)
    )
    assert torch.allclose(trace.read(), torch.tensor([[[1.25, 1.0], [0.5, 0.0]]]))


def test_static_threshold_reports_one_and_none_reports_nothing():
    x0 = torch.tensor([0.5, -3.0, 3.0, 0.0]).reshape(1, 1, 2, 2)
    told = []
    Guidance(threshold="static").apply_threshold(x0, lambda x0, bound: told.append(bound.item()))
    Guidance(threshold="none").apply_threshold(x0, lambda x0, bound: told.append("none"))
    assert told == [1.0]
    assert Trace().read().shape == (0, 2, 0)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_a_run_leaves_one_entry_a_step_and_the_same_picture(stage, text, sampler):
    trace = Trace()
    chosen = {"guidance": Guidance(8.0, percentile=0.9), "steps": 4, "width": 16, "height": 16}
    chosen |= {"batch_size": 2, "sampler": sampler}
    traced = sample_base(stage, text, trace=trace, **chosen)
    assert torch.equal(traced, sample_base(stage, text, **chosen))
    levels = trace.read()
    assert levels.shape == (4, 2, 2)
    assert (levels[-1, 0] > 1).all()
    assert (levels[-1, 1] > 0.05).all()
    assert (levels[:, 1] <= 0.102).all()


def test_the_bound_is_not_computed_twice(stage, text, monkeypatch):
    """A quantile of three million numbers costs as much as a small network."""
    calls = []
    monkeypatch.setattr(
        "imagen_nodes.imagen_core.diffusion.guidance.dynamic_bound",
        lambda *given: calls.append(0) or dynamic_bound(*given),
    )
    chosen = {"guidance": Guidance(8.0), "steps": 3, "width": 16, "height": 16}
    sample_base(stage, text, trace=Trace(), sampler="ddim", **chosen)
    assert len(calls) == 3
