"""Calls of sampling nodes evaluated together: the pictures of each call alone, in fewer evaluations."""

from dataclasses import replace

import pytest
import torch

from imagen_nodes import NODE_CLASS_MAPPINGS
from imagen_nodes.imagen_core import (
    PRESETS,
    EncodedPrompt,
    Guidance,
    SamplingDefaults,
    StageConfig,
    TextEmbedding,
    memory,
)
from imagen_nodes.nodes import many

BASE = {"width": 16, "height": 16, "batch_size": 1, "steps": 2, "sampler": "ddpm", "strength": 1.0}
SR = {"steps": 2, "sampler": "ddpm", "aug_level": 0.1, "tile": 0}


@pytest.fixture(scope="module")
def base(as_trained):
    return as_trained(
        StageConfig("base", 16, 1, PRESETS["tiny-base"], defaults=SamplingDefaults(2))
    )


@pytest.fixture(scope="module")
def sr(as_trained):
    return as_trained(StageConfig("sr", 64, 4, PRESETS["tiny-sr"], defaults=SamplingDefaults(2)))


def text(seed, negative=0, mixer=0.0):
    states = torch.randn(3, 1, 5, 16, generator=torch.Generator().manual_seed(seed))
    null = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1000 + negative))
    mask = torch.ones(1, 5, dtype=torch.bool)
    mask[:, 3 + seed % 2 :] = False
    both = (TextEmbedding(states[0], mask), TextEmbedding(null, torch.ones(1, 5, dtype=torch.bool)))
    return EncodedPrompt(*both, TextEmbedding(states[1], mask) if mixer else None, mixer)


def evaluations(stage, action):
    seen = []
    handle = stage.unet.conv_in.register_forward_pre_hook(
        lambda m, given: seen.append(len(given[0]))
    )
    try:
        return action(), seen
    finally:
        handle.remove()


def held_together(node_id, method, stage, calls):
    """The pictures of the calls, made together and alone; and the batches of the network together."""
    node = NODE_CLASS_MAPPINGS[node_id]()
    alone = [getattr(node, node.FUNCTION)(**call)[0] for call in calls]
    together, seen = evaluations(stage, lambda: getattr(node, node.RUN_MANY)(calls))
    assert method == node.RUN_MANY
    for (made,), expected in zip(together, alone, strict=True):
        assert made.shape == expected.shape
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)
    assert (together[0][0] - together[1][0][:1]).abs().max() > 0.01
    return seen


def test_prompts_share_the_evaluations_of_the_base(base):
    calls = [{"stage": base, "text": text(n), "seed": 7 * n, **BASE} for n in range(4)]
    assert held_together("ImagenBaseSample", "sample_many", base, calls) == [8, 8]


def test_other_negative_prompts_batches_and_second_prompts(base):
    calls = [
        {"stage": base, "text": text(n, n, 0.3), "seed": 2**64 - 1 - n, **BASE, "batch_size": 1 + n}
        for n in range(3)
    ]
    assert held_together("ImagenBaseSample", "sample_many", base, calls) == [18, 18]


def test_prompts_with_changes_and_regions_of_their_own_share_evaluations(base):
    left = torch.zeros(1, 16, 16)
    left[..., :8] = 1
    calls = []
    for n in range(3):
        later = ((0.2 * n + 0.1, text(10 + n).text),)
        changing = replace(text(n), text=replace(text(n).text, later=later))
        own = changing.with_region(text(20 + n), left)
        calls.append({"stage": base, "text": own, "seed": n, **BASE})
    assert held_together("ImagenBaseSample", "sample_many", base, calls) == [9, 9]


def test_what_differs_in_settings_is_evaluated_apart(base):
    calls = [{"stage": base, "text": text(n), "seed": n, **BASE} for n in range(5)]
    calls[1]["guidance"] = calls[2]["guidance"] = Guidance(3.0)
    calls[3]["steps"] = 1
    assert sorted(held_together("ImagenBaseSample", "sample_many", base, calls)) == [2, 4, 4, 4, 4]


def test_pictures_of_one_size_are_repainted_together(base):
    calls = [
        {"stage": base, "text": text(n), "seed": n, **BASE, "image": torch.rand(1 + n, 16, 24, 3)}
        for n in range(3)
    ]
    for call in calls:
        call["mask"] = torch.ones(1, 16, 24)
    calls.append({**calls[0], "image": torch.rand(1, 16, 16, 3), "mask": None})
    seen = held_together("ImagenBaseSample", "sample_many", base, calls)
    assert sorted(seen) == [2, 2, 12, 12]


def test_prompts_share_the_evaluations_of_super_resolution(sr, monkeypatch):
    calls = [
        {"stage": sr, "text": text(n), "seed": n, **SR, "image": torch.rand(1, 16, 16, 3)}
        for n in range(4)
    ]
    assert held_together("ImagenSR256", "enlarge_many", sr, calls) == [8, 8]
    needed = sr.running_bytes(2, 64, 64)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 3.1 * needed / memory.PART)
    assert held_together("ImagenSR256", "enlarge_many", sr, calls) == [6, 6, 2, 2]


def test_parts_hold_whole_calls():
    assert list(many.parts([0, 1, 2, 3], [2, 2, 5, 1], 4)) == [[0, 1], [2], [3]]
