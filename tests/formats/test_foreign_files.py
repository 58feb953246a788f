"""Stages as people's tools leave them: other names, prefixes, dtypes and encodings; and harmful files."""

import io
import json
import os
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagen_nodes.imagen_core import (
    PRESETS,
    ADMConfig,
    CheckpointError,
    EncodedPrompt,
    Stage,
    StageConfig,
    TextEmbedding,
    load_stage,
    sample_base,
    save_stage,
)
from imagen_nodes.imagen_core.formats.convert import convert
from imagen_nodes.imagen_core.formats.deepfloyd import read_yaml, stage_config
from imagen_nodes.imagen_core.formats.stage import guess
from imagen_nodes.imagen_core.weights.files import inside, read_json
from imagen_nodes.imagen_core.weights.tensors import weight_files

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small stage I as it is published: a configuration, and weights without our header."""
    shape = ADMConfig((32, 64), (1, 1), (False, True), 48, 32, 64, 16, 4, out_channels=6)
    folder = tmp_path_factory.mktemp("published")
    save_stage(Stage(stage_config(shape)), folder / "stage.safetensors")
    convert(folder / "stage.safetensors", folder / "unet", "diffusers")
    save_file(load_file(folder / "unet" / WEIGHTS), folder / "unet" / WEIGHTS)
    return folder / "unet"


@pytest.fixture
def unet(published, tmp_path):
    """A copy of it."""
    shutil.copytree(published, tmp_path / "unet")
    return tmp_path / "unet"


@pytest.fixture
def lone(tmp_path):
    """A small stage file of our own."""
    path = tmp_path / "stage.safetensors"
    save_stage(Stage(StageConfig("base", 16, 1, PRESETS["tiny-base"])), path)
    return path


def rewritten(path, change):
    """The file with its tensors changed, its header kept."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata)


@pytest.mark.parametrize("variant", ["ema", "non_ema", "bf16", "fp32", "fp16", "my_own"])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_lone_variant_is_read(unet, variant, ending):
    name = f"diffusion_pytorch_model.{variant}.{ending}"
    if ending == "safetensors":
        (unet / WEIGHTS).rename(unet / name)
    else:
        torch.save(load_file(unet / WEIGHTS), unet / name)
        (unet / WEIGHTS).unlink()
    assert weight_files(unet) == [unet / name]
    assert load_stage(unet).config.kind == "base"


def test_the_best_of_several_variants_is_read(tmp_path):
    names = ["", ".fp32", ".ema", ".fp16", ".bf16", ".non_ema", ".other"]
    files = [tmp_path / f"model{name}.safetensors" for name in names]
    for file in (*files, tmp_path / "model.bin"):
        file.touch()
    for file in files:
        assert weight_files(tmp_path) == [file]
        file.unlink()
    assert weight_files(tmp_path) == [tmp_path / "model.bin"]


def test_a_single_file_of_another_name_is_read_and_what_is_no_weights_is_named(unet):
    (unet / WEIGHTS).rename(unet / "my_finetune.safetensors")
    assert load_stage(unet).config.kind == "base"
    (unet / "my_finetune.safetensors").rename(unet / "diffusion_flax_model.msgpack")
    with pytest.raises(CheckpointError, match=r"expected a file of weights .*flax_model.msgpack"):
        load_stage(unet)


@pytest.mark.parametrize("names", ["m-{}-of-00002.safetensors", "m-{}-of-00002.fp16.safetensors"])
def test_shards_without_an_index_and_one_shard_for_all(unet, names):
    tensors = load_file(unet / WEIGHTS)
    (unet / WEIGHTS).unlink()
    for k in (1, 2):
        part = sorted(tensors)[k - 1 :: 2]
        save_file({name: tensors[name] for name in part}, unet / names.format(f"0000{k}"))
    for path in (unet, unet / names.format("00001"), unet / names.format("00002")):
        assert torch.equal(
            load_stage(path).unet.state_dict()["conv_in.bias"], tensors["conv_in.bias"]
        )
    (unet / names.format("00001")).unlink()
    with pytest.raises(CheckpointError, match="is one of 00002 shards, .*m-00001-of-00002"):
        load_stage(unet / names.format("00002"))


def test_shards_that_are_links_into_a_cache_are_read(unet, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    tensors = load_file(unet / WEIGHTS)
    weight_map = {}
    for k in range(2):
        part = sorted(tensors)[k::2]
        save_file({name: tensors[name] for name in part}, blobs / f"hash{k}")
        (unet / f"part{k}.safetensors").symlink_to(os.path.relpath(blobs / f"hash{k}", unet))
        weight_map |= dict.fromkeys(part, f"part{k}.safetensors")
    (unet / WEIGHTS).unlink()
    index = unet / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert load_stage(unet).config.kind == "base"
    for bad in ("../blobs/hash0", str(blobs / "hash0"), "", ".", 5, None, ["part0.safetensors"]):
        with pytest.raises(CheckpointError, match="expected a name inside"):
            inside(unet, bad, "index")
    for bad in ({"weight_map": {"x": 5, "y": "part0.safetensors"}}, {"weight_map": []}, {}):
        index.write_text(json.dumps(bad))
        with pytest.raises(CheckpointError, match="index"):
            load_stage(unet)


PREFIXES = ["module.", "_orig_mod.", "unet.", "model.diffusion_model.", "_orig_mod.module.unet."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_wrappers_put_before_all_names_is_taken_off(unet, lone, prefix):
    expected = load_stage(unet).unet.state_dict()["conv_in.bias"]
    for path in (unet / WEIGHTS, lone):
        rewritten(path, lambda tensors: {prefix + name: value for name, value in tensors.items()})
    assert torch.equal(load_stage(unet).unet.state_dict()["conv_in.bias"], expected)
    assert load_stage(lone).config.unet == PRESETS["tiny-base"]


def test_what_wrappers_put_into_names_is_taken_off_and_a_name_in_two_forms_is_refused(lone):
    inner = "conv_in.", "conv_in._orig_mod."
    rewritten(lone, lambda tensors: {k.replace(*inner): v for k, v in tensors.items()})
    load_stage(lone)
    rewritten(lone, lambda tensors: {**tensors, "conv_in.bias": torch.zeros(16)})
    with pytest.raises(CheckpointError, match="holds conv_in.bias twice"):
        load_stage(lone)


LORAS = [
    "unet.down_blocks.1.attentions.0.to_q.lora_A.weight",
    "base_model.model.mid_block.attentions.0.to_q.lora_A.default.weight",
    "down_blocks.1.attentions.0.processor.to_q_lora.down.weight",
    "lora_unet_down_blocks_1_attentions_0_to_q.lora_down.weight",
    "unet.down_blocks.1.attentions.0.to_q.lora.up.weight",
    "lycoris_down_blocks_1.lokr_w1",
    "lora_unet_down_blocks_1.hada_w1_a",
    "encoder.block.0.layer.0.SelfAttention.q.lora_B.weight",
    "add_embedding.pool.q_proj.lora_magnitude_vector.lora_A.weight",
]


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_is_called_one(tmp_path, name):
    save_file({name: torch.zeros(4, 64)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="a LoRA"):
        load_stage(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("text.embeds", "an encoded prompt"),
        ("time_embed.0.weight", "something else"),
        ("pooled_text.pool.k_proj.weight", "lost the configuration"),
        ("first_stage_model.encoder.conv_in.weight", "VAE"),
        ("double_blocks.0.img_attn.qkv.weight", "diffusion transformer"),
        ("color_embedding.weight", "something else"),
        ("explorations.0.weight", "something else"),
    ],
)
def test_foreign_files_are_called_what_they_are(name, what):
    assert what in guess([name])


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"GGUF\3\0\0\0", "is a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "is a web page"),
    ],
)
def test_what_a_download_left_in_place_of_weights_is_named(tmp_path, start, what):
    (tmp_path / "x.safetensors").write_bytes(start + b" " * 100)
    with pytest.raises(CheckpointError, match=what):
        load_stage(tmp_path / "x.safetensors")


def prompt(width):
    states = torch.randn(2, 1, 5, width, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 5, dtype=torch.bool)
    return EncodedPrompt(*(TextEmbedding(each, mask) for each in states))


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "mixed with float8", "mixed"])
def test_weights_that_have_no_arithmetic_of_one_dtype_are_computed_in_one_that_has(lone, kind):
    def change(tensors):
        for i, (name, value) in enumerate(tensors.items()):
            if kind.startswith("mixed"):
                kinds = [torch.float16, torch.bfloat16, torch.float32]
                kinds += [torch.float8_e4m3fn] * ("float8" in kind)
                tensors[name] = value.to(kinds[i % len(kinds)])
            else:
                tensors[name] = value.to(getattr(torch, kind))
        return tensors

    rewritten(lone, change)
    stage = load_stage(lone)
    assert {p.dtype for p in stage.unet.parameters()} == {torch.float32}
    assert sample_base(stage, prompt(16), width=16, height=16, steps=1).isfinite().all()


def test_one_dtype_that_can_be_computed_in_is_kept(lone):
    rewritten(lone, lambda tensors: {name: value.bfloat16() for name, value in tensors.items()})
    assert load_stage(lone).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.bool])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_whole_numbers_are_no_weights(lone, kind, dtype):
    rewritten(
        lone, lambda tensors: {**tensors, "conv_in.weight": tensors["conv_in.weight"].to(kind)}
    )
    with pytest.raises(CheckpointError, match="conv_in.weight: expected floating-point weights"):
        load_stage(lone, dtype=dtype)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_configuration_in_any_encoding_is_read(unet, encoding):
    text = (unet / "config.json").read_text()
    (unet / "config.json").write_bytes(text.encode(encoding))
    assert load_stage(unet).config.kind == "base"


def test_json_that_is_none_is_one_error_that_names_the_file(tmp_path):
    path = tmp_path / "x.json"
    for text in (b"", b"{", b"[1]", b"[" * 10**5, b"\xff\xfe\xff", b"1" * 5000, b'{"a": 1} x'):
        path.write_bytes(text)
        with pytest.raises(CheckpointError, match=r"x\.json: "):
            read_json(path)
    with pytest.raises(CheckpointError, match="x"):
        read_json(tmp_path / "x")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{k}: &{k} [" + ", ".join(f"*{b}" for _ in range(9)) + "]\n"
    for b, k in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "x: " + "[" * 5000, "a: !!python/object:os.system x", "{"])
def test_yaml_that_would_multiply_or_run_is_refused(tmp_path, text):
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.yml"):
        read_yaml(tmp_path / "config.yml")


HUGE = {
    "num_res_blocks": [10**9, 1],
    "channels": [2**40, 2**40],
    "text_dim": 10**12,
    "time_dim": 10**10,
    "groups": 0,
    "patch": 10**6,
    "out_channels": -3,
    "head_dim": 0,
    "pool_heads": 3,
    "residual_scale": float("nan"),
    "lowres": "yes",
    "attention": [True],
    "activation": ["gelu"],
}


@pytest.mark.parametrize("field", HUGE)
def test_the_sizes_in_a_header_are_bounded_before_they_are_trusted(lone, field):
    config = json.loads(json.dumps(StageConfig("base", 16, 1, PRESETS["tiny-base"]).to_dict()))
    config["unet"][field] = HUGE[field]
    save_file(load_file(lone), lone, {"format": "imagen_nodes.stage", "config": json.dumps(config)})
    with pytest.raises(CheckpointError, match="bad configuration"):
        load_stage(lone)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", {"name": "squaredcos_cap_v2", "num_timesteps": 10**12}),
        ("schedule", []),
        ("schedule", {"name": []}),
        ("unet", []),
        ("defaults", {"steps": [1.5]}),
        ("defaults", {"guidance_scale": "x"}),
        ("resolution", 10**9),
        ("scale", 0),
        ("kind", None),
        ("prediction", []),
    ],
)
def test_a_header_of_other_types_is_one_error(lone, field, value):
    config = {**StageConfig("base", 16, 1, PRESETS["tiny-base"]).to_dict(), field: value}
    save_file(load_file(lone), lone, {"format": "imagen_nodes.stage", "config": json.dumps(config)})
    with pytest.raises(CheckpointError, match="bad configuration"):
        load_stage(lone)


def test_tensors_without_the_memory_of_their_values_are_refused(tmp_path):
    wide = torch.zeros(1).expand(2**20, 2**20)
    for name, tensor in {"wide": wide, "sparse": sparse()}.items():
        torch.save({name: tensor}, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=f"{name}: expected a plain tensor"):
            load_stage(tmp_path)


def test_tensors_that_share_one_memory_many_times_are_refused(tmp_path):
    one = torch.zeros(2**16)
    torch.save({str(k): one for k in range(4)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="something else"):
        load_stage(tmp_path)
    torch.save({str(k): one for k in range(100)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="share their values over 8 times"):
        load_stage(tmp_path)


def sparse():
    places = torch.zeros(2, 1, dtype=torch.long)
    return torch.sparse_coo_tensor(places, torch.ones(1), (2**20, 2**20), check_invariants=True)


def test_a_torch_file_that_unpacks_to_more_than_itself_is_refused(tmp_path):
    plain = io.BytesIO()
    torch.save({"x": torch.zeros(2**20)}, plain)
    with (
        zipfile.ZipFile(plain) as file,
        zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in file.namelist():
            packed.writestr(name, file.read(name))
    with pytest.raises(CheckpointError, match="compressed, and would unpack to"):
        load_stage(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.int8])
def test_a_dtype_without_arithmetic_is_refused(lone, dtype):
    with pytest.raises(ValueError, match="dtype: expected what is computed in"):
        load_stage(lone, dtype=dtype)
