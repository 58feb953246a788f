"""How far it is from a node to the network: the frames of this package, counted where the U-Net begins."""

import sys
from pathlib import Path

import pytest
import torch

from imagen_nodes import NODE_CLASS_MAPPINGS
from imagen_nodes.imagen_core import (
    PRESETS,
    EncodedPrompt,
    SamplingDefaults,
    Stage,
    StageConfig,
    TextEmbedding,
)

PACKAGE = Path(sys.modules["imagen_nodes"].__path__[0])


@pytest.fixture(scope="module")
def stages():
    own = SamplingDefaults(steps=2)
    return {
        "base": Stage(StageConfig("base", 16, 1, PRESETS["tiny-base"], defaults=own)),
        "sr": Stage(StageConfig("sr", 64, 4, PRESETS["tiny-sr"], defaults=own)),
    }


def text():
    states, mask = torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.bool)
    return EncodedPrompt(TextEmbedding(states, mask), TextEmbedding(states, mask))


def walk(node_id, stage, **inputs):
    """Names of the functions between the node's method and unet.forward, both included."""
    walks = set()

    def look(module, given):
        frame, found = sys._getframe(), []
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if any(path.is_relative_to(PACKAGE / folder) for folder in ("nodes", "imagen_core")):
                found.append(frame.f_code.co_name)
            frame = frame.f_back
        walks.add(tuple(reversed(found)))

    handle = stage.unet.conv_in.register_forward_pre_hook(look)
    cls = NODE_CLASS_MAPPINGS[node_id]
    try:
        getattr(cls(), cls.FUNCTION)(stage=stage, text=text(), seed=0, steps=2, **inputs)
    finally:
        handle.remove()
    (found,) = walks
    return found


BASE = {"width": 16, "height": 16, "batch_size": 2, "sampler": "heun", "strength": 1.0}
SR = {"image": torch.rand(1, 16, 16, 3), "sampler": "ddpm", "aug_level": 0.1}


def test_five_frames_from_the_node_to_the_network(stages):
    found = walk("ImagenBaseSample", stages["base"], **BASE)
    assert found == ("sample", "sample_base", "sample_heun", "denoise", "forward")
    for tile in (0, 48):
        found = walk("ImagenSR256", stages["sr"], tile=tile, **SR)
        assert found == ("enlarge", "super_resolve", "sample_ddpm", "denoise", "forward")


@pytest.mark.parametrize("method", ["repaint", "clean"])
def test_one_more_with_a_mask(stages, method):
    inputs = {"image": torch.rand(1, 16, 16, 3), "mask": torch.ones(1, 16, 16)}
    inputs |= {"inpaint": method, "resample": 2, "jump": 1}
    assert len(walk("ImagenBaseSample", stages["base"], **BASE, **inputs)) == 6
    inputs = {"original": torch.rand(1, 64, 64, 3), "mask": torch.ones(1, 64, 64)}
    assert len(walk("ImagenSR256", stages["sr"], tile=0, inpaint=method, **SR, **inputs)) == 6
