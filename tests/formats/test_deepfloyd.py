"""DeepFloyd IF's networks against diffusers', their files and folders, and what damaged ones are told."""

import copy
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagen_nodes.cli.main import main
from imagen_nodes.imagen_core import (
    SAMPLERS,
    CheckpointError,
    EncodedPrompt,
    TextEmbedding,
    load_stage,
    sample_base,
    super_resolve,
)
from imagen_nodes.imagen_core.formats.convert import convert
from imagen_nodes.imagen_core.formats.deepfloyd import from_shapes
from imagen_nodes.imagen_core.formats.diffusers_config import from_diffusers, to_diffusers

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
    stage = load_stage(folder, dtype=dtype)
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


@pytest.fixture(scope="module")
def original(published, tmp_path_factory):
    """The same network's folder in the original layout."""
    folder = tmp_path_factory.mktemp("original") / f"IF-{published.number}"
    convert(published.folder, folder, "original")
    return folder


def test_both_layouts_hold_the_same_network(published, original):
    number, peer, folder = published
    stage, again = load_stage(folder), load_stage(original)
    written = torch.load(original / "pytorch_model.bin", weights_only=True)
    assert (len(peer.state_dict()), len(written)) == TENSORS[number]
    assert again.config == stage.config
    for name, tensor in stage.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], tensor), name


def test_qkv_rows_interleave_by_head(published, original):
    """A plain split of the original qkv would load without complaint, and be wrong."""
    written = torch.load(original / "pytorch_model.bin", weights_only=True)
    kv = written["middle_block.1.encoder_kv.weight"].squeeze(-1)
    ours = load_stage(published.folder).unet.state_dict()["middle.0.attention.text_kv.weight"]
    width = len(ours) // 2
    assert torch.equal(kv[:16], ours[:16])
    assert torch.equal(kv[16:32], ours[width : width + 16])


def test_a_published_configuration_comes_back(published, original):
    """Read by us, and by diffusers."""
    config = load_stage(published.folder).config.unet
    assert from_diffusers(to_diffusers(config)) == config
    peer = type(published.peer).from_config(to_diffusers(config)).eval()
    peer.load_state_dict(published.peer.state_dict())
    x = torch.randn(1, peer.config["in_channels"], 16, 16)
    told = {"class_labels": torch.tensor([250])} if config.lowres else {}
    with torch.no_grad():
        results = [
            network(x, 500, torch.ones(1, 77, 64), **told).sample
            for network in (peer, published.peer)
        ]
    assert torch.equal(*results)


def test_a_lone_original_file_tells_its_own_shape(published, original):
    """The head width is not among it: 64 in published files."""
    config = load_stage(published.folder).config.unet
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in torch.load(original / "pytorch_model.bin", weights_only=True).items()
    }
    assert from_shapes(shapes, "original") == replace(config, head_dim=64, pool_heads=64)


def test_a_lone_file_tells_its_own_shape(published):
    """All but the head width, which is always 64 in published files."""
    _, peer, _ = published
    config = from_diffusers(peer.config)
    shapes = {k: tuple(v.shape) for k, v in peer.state_dict().items()}
    assert from_shapes(shapes, "diffusers") == replace(config, head_dim=64, pool_heads=64)


def test_shards_are_read_together(deepfloyd, tmp_path):
    folder = deepfloyd(1).folder
    tensors = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, tmp_path / file)
    weight_map = {name: file for file, chosen in parts.items() for name in chosen}
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text((folder / "unet/config.json").read_text())
    found = load_stage(tmp_path).unet.state_dict()
    assert all(torch.equal(found[k], v) for k, v in load_stage(folder).unet.state_dict().items())
    index.write_text(json.dumps({"weight_map": {"x": "../evil.safetensors"}}))
    with pytest.raises(CheckpointError, match="expected a name inside"):
        load_stage(tmp_path)
    index.write_text(json.dumps({"weight_map": {"x": "c.safetensors"}}))
    with pytest.raises(CheckpointError, match="shards that are not there"):
        load_stage(tmp_path)


def test_damaged_weights_are_listed(deepfloyd, tmp_path):
    folder = deepfloyd(1).folder
    tensors = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    del tensors["conv_in.bias"]
    tensors["conv_out.bias"] = torch.zeros(9)
    tensors["stranger"] = torch.zeros(1)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((folder / "unet/config.json").read_text())
    with pytest.raises(CheckpointError) as caught:
        load_stage(tmp_path)
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


@pytest.mark.parametrize("variant", ["fp16.safetensors", "bin", "fp16.bin", "legacy"])
def test_every_published_variant_is_read(deepfloyd, tmp_path, variant):
    folder = deepfloyd(1).folder
    tensors = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((folder / "unet/config.json").read_text())
    if "fp16" in variant:
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    if variant.endswith("safetensors"):
        save_file(tensors, tmp_path / f"diffusion_pytorch_model.{variant}")
    else:
        torch.save(
            tensors,
            tmp_path / f"diffusion_pytorch_model.{variant.replace('legacy', 'bin')}",
            _use_new_zipfile_serialization=variant != "legacy",
        )
    found = load_stage(tmp_path)
    assert found.dtype == (torch.float16 if "fp16" in variant else torch.float32)
    for name, tensor in load_stage(folder).unet.state_dict().items():
        assert torch.equal(found.unet.state_dict()[name], tensor.to(found.dtype)), name


def test_safetensors_go_before_pickles_and_whole_precision_before_half(deepfloyd, tmp_path):
    folder = deepfloyd(1).folder
    shutil.copytree(folder / "unet", tmp_path / "unet")
    (tmp_path / "unet/diffusion_pytorch_model.bin").write_bytes(b"never read")
    (tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"never read")
    assert load_stage(tmp_path).dtype == torch.float32


def damage_index(unet, text):
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(text)


DAMAGES = {
    "a truncated file": (
        lambda unet: os.truncate(unet / "diffusion_pytorch_model.safetensors", 100_000),
        "not a whole safetensors file",
    ),
    "a truncated torch file": (
        lambda unet: (
            (unet / "diffusion_pytorch_model.safetensors").unlink(),
            torch.save({"x": torch.zeros(10_000)}, unet / "diffusion_pytorch_model.bin"),
            os.truncate(unet / "diffusion_pytorch_model.bin", 5_000),
        ),
        "cannot be read as plain weights",
    ),
    "a truncated shard": (
        lambda unet: (
            shutil.move(unet / "diffusion_pytorch_model.safetensors", unet / "a.safetensors"),
            os.truncate(unet / "a.safetensors", 100_000),
            (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(
                '{"weight_map": {"x": "a.safetensors"}}'
            ),
        ),
        "a.safetensors: not a whole safetensors file",
    ),
    "an index that leaves the folder": (
        lambda unet: damage_index(unet, '{"weight_map": {"x": "../../evil.safetensors"}}'),
        "expected a name inside",
    ),
    "an index of nothing": (lambda unet: damage_index(unet, "[]"), "not an index of shards"),
    "a shard that is not there": (
        lambda unet: damage_index(unet, '{"weight_map": {"x": "a.safetensors"}}'),
        "shards that are not there",
    ),
    "a configuration that is none": (
        lambda unet: (unet / "config.json").write_text("{"),
        "not the shape of a DeepFloyd IF network",
    ),
    "a configuration of another network": (
        lambda unet: (unet / "config.json").write_text('{"block_out_channels": [1]}'),
        "not the shape of a DeepFloyd IF network",
    ),
    "no weights": (
        lambda unet: (unet / "diffusion_pytorch_model.safetensors").unlink(),
        "expected a file of weights such as",
    ),
    "wrong widths": (
        lambda unet: (unet / "config.json").write_text(
            (unet / "config.json").read_text().replace("96", "64")
        ),
        "tensors do not fit the network's shape",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_clear_error_and_no_traceback(deepfloyd, tmp_path, capsys, damage):
    shutil.copytree(deepfloyd(1).folder, tmp_path / "model")
    spoil, message = DAMAGES[damage]
    spoil(tmp_path / "model/unet")
    for command in (["info"], ["convert", str(tmp_path / "out")]):
        command.insert(1, str(tmp_path / "model"))
        assert main(command) == 2
        told = capsys.readouterr()
        assert message in told.err
        assert "Traceback" not in told.err + told.out
    assert not (tmp_path / "out").exists()


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"x": RunsCode(tmp_path / "executed")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        load_stage(tmp_path)
    assert main(["info", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "nothing in it was executed" in told.err
    assert "Traceback" not in told.err
    assert not (tmp_path / "executed").exists()


def test_a_pickle_of_other_things_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1), "epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="expected tensors by name"):
        load_stage(tmp_path)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_walks_the_discrete_grid(deepfloyd, sampler):
    """From noise 20291 times the signal, where x0 without its threshold would be rounding alone."""
    stage, states = load_stage(deepfloyd(1).folder), text(1)
    picture = sample_base(
        stage, EncodedPrompt(states, text(1, seed=4)), width=16, height=16, sampler=sampler,
        steps="[999, 976, 700, 400, 100, 0]",
    )  # fmt: skip
    assert picture.isfinite().all()
    assert 0 <= picture.min() < picture.max() <= 1
    assert picture.std() > 0.05


def test_a_size_that_stage_one_cannot_take_names_the_nearest(deepfloyd):
    prompt = EncodedPrompt(text(1), text(1, seed=4))
    with pytest.raises(
        ValueError, match="multiples of 8, got 86 x 64; .*sizes are 80 x 64 and 88 x 64"
    ):
        sample_base(load_stage(deepfloyd(1).folder), prompt, width=86, height=64)


@pytest.mark.parametrize("tile", [0, 64])
def test_a_size_that_stage_two_cannot_take_names_the_nearest(deepfloyd, tile):
    """diffusers' pipeline fails inside the network at sides that are no multiples of 16 (88 here)."""
    prompt = EncodedPrompt(text(1), text(1, seed=4))
    stage = load_stage(deepfloyd(2).folder)
    message = "image: .*multiples of 4, got 22 x 8; .*sizes are 20 x 8 and 24 x 8"
    with pytest.raises(ValueError, match=message):
        super_resolve(stage, torch.rand(1, 8, 22, 3), prompt, tile=tile)
    with pytest.raises(ValueError, match="got 3 x 8; the nearest good size is 4 x 8"):
        super_resolve(stage, torch.rand(1, 8, 3, 3), prompt, tile=tile)
    wide = torch.rand(1, 12, 40, 3)
    picture = super_resolve(stage, wide, prompt, steps="leading2", tile=tile)
    assert picture.shape == (1, 48, 160, 3)
