"""Thresholds against written-out arithmetic, per image; guidance settings and their faults."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen_nodes.imagen_core.diffusion import guidance as module
from imagen_nodes.imagen_core.diffusion.guidance import (
    Guidance,
    dynamic_threshold,
    static_threshold,
)


def threshold_by_hand(x0, percentile, max_value):
    """One image, by sorting: linear interpolation between the ranks around the percentile."""
    magnitudes = sorted(x0.abs().flatten().tolist())
    rank = percentile * (len(magnitudes) - 1)
    low = int(rank)
    high = min(low + 1, len(magnitudes) - 1)
    s = magnitudes[low] + (magnitudes[high] - magnitudes[low]) * (rank - low)
    s = max(1.0, s) if max_value is None else min(max(1.0, s), max_value)
    return x0.clamp(-s, s) / s


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(0.1, 6.0),
    percentile=st.floats(0.01, 1.0),
    max_value=st.none() | st.floats(1.0, 3.0),
    seed=st.integers(0, 1000),
)
def test_dynamic_threshold_is_the_written_out_rule(scale, percentile, max_value, seed):
    x0 = scale * torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    result = dynamic_threshold(x0, percentile, max_value)
    for i in range(2):
        assert torch.allclose(result[i], threshold_by_hand(x0[i], percentile, max_value), atol=1e-5)
    assert result.abs().max() <= 1


def test_dynamic_threshold_acts_per_image():
    x0 = torch.cat([torch.full((1, 3, 4, 4), 0.5), 5 * torch.randn(1, 3, 4, 4)])
    result = dynamic_threshold(x0)
    assert torch.equal(result[0], x0[0]), (
        "an image in range is left alone whatever its neighbour is"
    )
    assert torch.equal(result[1:], dynamic_threshold(x0[1:]))


@pytest.mark.parametrize("selecting", [("cpu",), ()], ids=["cpu", "gpu"])
@pytest.mark.parametrize("percentile", [0.97, 0.5, 1.0])
def test_large_pictures_have_the_same_quantile(monkeypatch, selecting, percentile):
    x0 = 2 * torch.randn(2, 3, 16, 16)
    expected = dynamic_threshold(x0, percentile)
    monkeypatch.setattr(module, "QUANTILE_LIMIT", 100)
    monkeypatch.setattr(module, "SELECTING", selecting)
    monkeypatch.setattr(torch, "quantile", None)
    monkeypatch.setattr(torch.Tensor, "sort" if selecting else "kthvalue", None)
    assert torch.allclose(dynamic_threshold(x0, percentile), expected, atol=1e-6)


def test_which_quantile_is_taken_does_not_depend_on_the_batch(monkeypatch):
    x0 = 2 * torch.randn(4, 3, 16, 16)
    monkeypatch.setattr(module, "QUANTILE_LIMIT", 3 * 16 * 16)
    monkeypatch.setattr(module, "_large_quantile", None)
    together = dynamic_threshold(x0, 0.97)
    assert torch.equal(together[1:2], dynamic_threshold(x0[1:2], 0.97))


def test_infinite_values_are_clipped_under_a_bound():
    x0 = torch.zeros(1, 3, 4, 4)
    x0[0, 0, 0] = float("inf")
    result = dynamic_threshold(x0, 0.95, max_value=1.5)
    assert torch.isfinite(result).all() and result.max() == 1


def test_static_threshold_clips():
    assert torch.equal(
        static_threshold(torch.tensor([-3.0, 0.2, 3.0])), torch.tensor([-1.0, 0.2, 1.0])
    )


def test_scale_of_each_step():
    assert Guidance(4.0).scales(3) == [4.0, 4.0, 4.0]
    assert Guidance(4.0, start=0.25, end=0.75).scales(8) == [1, 1, 4, 4, 4, 4, 1, 1]
    assert Guidance(15.0, oscillate=True).scales(8) == [15, 15, 15, 15, 15, 1, 15, 1]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"threshold": "Dynamic"}, "threshold must be one of"),
        ({"percentile": 0.0}, "percentile must be in"),
        ({"percentile": 99.5}, "percentile must be in"),
        ({"max_value": 0.5}, "max_value must be at least 1"),
        ({"start": 0.8, "end": 0.2}, "start <= end"),
    ],
)
def test_faults_are_named(fault, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**fault)
