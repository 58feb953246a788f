"""DeepFloyd IF against diffusers: the networks and their file layouts; random weights."""

import copy
import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagen_nodes.imagen_core import CheckpointError, TextEmbedding
from imagen_nodes.imagen_core.checkpoints.deepfloyd import (
    from_diffusers,
    from_shapes,
    load_deepfloyd,
)
from imagen_nodes.imagen_core.checkpoints.deepfloyd_names import entries

TENSORS = {1: (775, 643), 2: (847, 801)}


@pytest.fixture(scope="module", params=[1, 2])
def published(request, deepfloyd):
    """Stage number, diffusers' network, and its folder."""
    return deepfloyd(request.param)


def text(rows, seed=0):
    states = torch.randn(rows, 77, 64, generator=torch.Generator().manual_seed(seed))
    return TextEmbedding(states, torch.ones(rows, 77, dtype=torch.bool))


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_the_network_is_diffusers_network(published, dtype, tolerance):
    """In float64 up to the sinusoids, which both compute in float32, and 0.7071, which one divides by."""
    number, peer, folder = published
    stage = load_deepfloyd(folder, dtype=dtype)
    peer = copy.deepcopy(peer).to(dtype)
    x, lowres = torch.randn(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    t, k, states = torch.tensor([857.0, 37.0]), torch.tensor([250.0, 100.0]), text(2)
    context = stage.unet.prepare(states)
    embeds = states.embeds.to(dtype)
    if number == 1:
        ours, theirs = stage.unet(x, t, context), peer(x, t, embeds).sample
    else:
        ours = stage.unet(x, t, context, lowres, k)
        both = torch.cat([x, lowres], dim=1)
        theirs = peer(both, t, embeds, class_labels=k).sample
    assert (ours - theirs).abs().max() <= tolerance * theirs.std()


def original_layout(stage, folder):
    """The same weights as the original repository stores them: pytorch_model.bin and config.yml."""
    config = stage.config.unet
    state = stage.unet.state_dict()
    table = entries(config, "original", set(state))
    written = {}
    for entry in table:
        tensors = entry.write(state[entry.ours], config.head_dim)
        written |= {n: t.contiguous() for n, t in zip(entry.theirs, tensors, strict=True)}
    folder.mkdir()
    torch.save(written, folder / "pytorch_model.bin")
    sizes = (
        [64 >> level for level in range(4)] if not config.lowres else [256 >> i for i in range(5)]
    )
    resolutions = [str(s) for s, there in zip(sizes, config.attention, strict=True) if there]
    first = config.channels[0]
    params = {
        "model_channels": first,
        "channel_mult": ",".join(str(c // first) for c in config.channels),
        "num_res_blocks": list(config.num_res_blocks),
        "attention_resolutions": ",".join(resolutions),
        "image_size": sizes[0],
        "encoder_dim": 64,
        "encoder_channels": 128,
        "num_head_channels": 16,
        "att_pool_heads": 4,
        "out_channels": 6,
        "activation": "gelu",
    }
    (folder / "config.yml").write_text(json.dumps({"params": params}))
    return written


def test_both_layouts_hold_the_same_network(published, tmp_path):
    number, peer, folder = published
    stage = load_deepfloyd(folder)
    written = original_layout(stage, tmp_path / "original")
    assert (len(peer.state_dict()), len(written)) == TENSORS[number]
    again = load_deepfloyd(tmp_path / "original")
    assert again.config == stage.config
    for name, tensor in stage.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], tensor), name


def test_qkv_rows_interleave_by_head(published, tmp_path):
    """A plain split of the original qkv would load without complaint, and be wrong."""
    _, _, folder = published
    stage = load_deepfloyd(folder)
    written = original_layout(stage, tmp_path / "original")
    kv = written["middle_block.1.encoder_kv.weight"].squeeze(-1)
    ours = stage.unet.state_dict()["middle.0.attention.text_kv.weight"]
    width = len(ours) // 2
    assert torch.equal(kv[:16], ours[:16])
    assert torch.equal(kv[16:32], ours[width : width + 16])


def test_a_lone_file_tells_its_own_shape(published):
    """All but the head width, which is always 64 in published files."""
    _, peer, _ = published
    config = from_diffusers(peer.config)
    shapes = {k: tuple(v.shape) for k, v in peer.state_dict().items()}
    assert from_shapes(shapes) == replace(config, head_dim=64, pool_heads=64)


def test_shards_are_read_together(published, tmp_path):
    _, _, folder = published
    tensors = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, tmp_path / file)
    weight_map = {name: file for file, chosen in parts.items() for name in chosen}
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text((folder / "unet/config.json").read_text())
    found = load_deepfloyd(tmp_path).unet.state_dict()
    assert all(
        torch.equal(found[k], v) for k, v in load_deepfloyd(folder).unet.state_dict().items()
    )
    index.write_text(json.dumps({"weight_map": {"x": "../evil.safetensors"}}))
    with pytest.raises(CheckpointError, match="expected a name inside"):
        load_deepfloyd(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "c.safetensors"}}))
    with pytest.raises(CheckpointError, match="shards that are not there"):
        load_deepfloyd(tmp_path)


def test_damaged_weights_are_listed(published, tmp_path):
    _, _, folder = published
    tensors = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    del tensors["conv_in.bias"]
    tensors["conv_out.bias"] = torch.zeros(9)
    tensors["stranger"] = torch.zeros(1)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((folder / "unet/config.json").read_text())
    with pytest.raises(CheckpointError) as caught:
        load_deepfloyd(tmp_path)
    for line in (
        "missing conv_in.bias [32]",
        "unexpected stranger [1]",
        "conv_out.bias: expected [6]",
    ):
        assert line in str(caught.value)


class RunsCode:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    torch.save({"x": RunsCode(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        load_deepfloyd(tmp_path)
    assert not (tmp_path / "executed").exists()
