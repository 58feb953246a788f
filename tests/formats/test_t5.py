"""Every form in which people have a T5, against transformers' encoder with the same weights."""

import importlib.util
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imagen_nodes.imagen_core import CheckpointError, load_text_encoder
from imagen_nodes.imagen_core.weights.block_formats import FORMATS

PROMPTS = ["a red apple", "the dog sat on a hill", ""]
NEEDS_GGUF = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the package gguf writes the files"
)
HALVES = {"Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "Q8_0": [0]}
HALVES |= {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2]}


def config_of(folder, **changes):
    from transformers import T5Config

    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    shape = dict(vocab_size=vocab, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4)
    return T5Config(**{**shape, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, **changes})


def random_state(config, seed=0):
    """Weights of an encoder, of a size that keeps its states near one."""
    from transformers import T5EncoderModel

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in T5EncoderModel(config).state_dict().items():
        if name != "encoder.embed_tokens.weight":
            noise = torch.randn(value.shape, generator=generator)
            state[name] = 1 + 0.1 * noise if value.ndim == 1 else noise * value.shape[-1] ** -0.5
    return state


def reference(config, state, folder):
    """States that transformers computes for the prompts, and their mask."""
    from transformers import AutoTokenizer, T5EncoderModel

    tokens = AutoTokenizer.from_pretrained(folder)(
        PROMPTS, padding="max_length", max_length=8, truncation=True, return_tensors="pt"
    )
    model = T5EncoderModel(config).eval()
    tied = {**state, "encoder.embed_tokens.weight": state["shared.weight"]}
    model.load_state_dict({name: value.float() for name, value in tied.items()})
    with torch.no_grad():
        return model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).last_hidden_state


@pytest.fixture
def place(t5_folder, tmp_path):
    """A folder of files beside which the tokenizer lies in a folder of its own."""
    (tmp_path / "t5").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(t5_folder / name, tmp_path / "t5" / name)
    return tmp_path


def check(path, config, state, folder, atol=1e-5, **options):
    found = load_text_encoder(path, **options).encode(PROMPTS)
    expected = reference(config, state, folder)
    assert (found.embeds - expected).abs().max() <= atol, (found.embeds - expected).abs().max()


@pytest.mark.parametrize("form", ["whole", "fp16", "sharded", "torch", "torch sharded"])
def test_folders_of_hugging_face(t5_folder, place, form):
    from transformers import T5EncoderModel

    config = config_of(t5_folder)
    state = random_state(config)
    if form == "fp16":
        state = {name: value.half() for name, value in state.items()}
    folder = place / "t5"
    config.save_pretrained(folder)
    if form in ("whole", "fp16"):
        save_file(
            state, folder / ("model.fp16.safetensors" if form == "fp16" else "model.safetensors")
        )
    elif form == "sharded":
        model = T5EncoderModel(config)
        model.load_state_dict({**state, "encoder.embed_tokens.weight": state["shared.weight"]})
        model.save_pretrained(folder, max_shard_size="50KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif form == "torch":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = sorted(state)
        index = {}
        for part in range(2):
            file = f"pytorch_model-{part + 1:05}-of-00002.bin"
            torch.save({name: state[name] for name in names[part::2]}, folder / file)
            index |= dict.fromkeys(names[part::2], file)
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "pytorch_model.bin.index.json").write_text(text)
    check(folder, config, state, t5_folder)


def test_deepfloyd_keeps_the_tokenizer_beside_the_encoder(t5_folder, place):
    """IF's folder holds text_encoder/ and tokenizer/; either it or its text_encoder/ is chosen."""
    config = config_of(t5_folder)
    state = random_state(config)
    (place / "text_encoder").mkdir()
    (place / "t5").rename(place / "tokenizer")
    config.save_pretrained(place / "text_encoder")
    save_file(state, place / "text_encoder" / "model.safetensors")
    check(place, config, state, t5_folder)
    check(place / "text_encoder", config, state, t5_folder)


def test_a_whole_t5_gives_its_encoder(t5_folder, place):
    config = config_of(t5_folder)
    state = random_state(config)
    extra = {"decoder.final_layer_norm.weight": torch.ones(64), "lm_head.weight": torch.ones(3, 3)}
    save_file({**state, **extra}, place / "all.safetensors")
    check(place / "all.safetensors", config, state, t5_folder)


SIZES = {
    "v1.1 like small": dict(d_model=64, d_kv=16, num_heads=6, d_ff=128, num_layers=3),
    "v1.1 like XXL": dict(d_model=128, d_kv=32, num_heads=4, d_ff=320, num_layers=2),
    "v1.0": dict(feed_forward_proj="relu", d_ff=256),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_shape_of_a_lone_file_is_read_off_its_tensors(t5_folder, place, size):
    config = config_of(t5_folder, **SIZES[size])
    state = random_state(config)
    save_file(state, place / "t5.safetensors")
    check(place / "t5.safetensors", config, state, t5_folder)


def test_published_shapes_are_inferred():
    from imagen_nodes.imagen_core.text.t5 import T5Config

    published = {  # width, hidden, layers, heads
        "small": (512, 1024, 8, 6),
        "base": (768, 2048, 12, 12),
        "large": (1024, 2816, 24, 16),
        "xl": (2048, 5120, 24, 32),
        "xxl": (4096, 10240, 24, 64),
    }
    for width, hidden, layers, heads in published.values():
        config = T5Config(32128, width, layers, heads, 64, hidden)
        assert T5Config.infer(config.shapes()) == config


@pytest.mark.parametrize("name", ["t5xxl_fp16", "t5xxl_bf16"])
def test_half_precision_files(t5_folder, place, name):
    config = config_of(t5_folder)
    kind = torch.float16 if name.endswith("fp16") else torch.bfloat16
    state = {name: value.to(kind) for name, value in random_state(config).items()}
    path = place / f"{name}.safetensors"
    save_file(state, path)
    check(path, config, state, t5_folder)
    encoder = load_text_encoder(path)
    assert encoder.model.encoder.block[0].layer[0].SelfAttention.q.stored.dtype == kind
    assert encoder.dtype == torch.float32


def fp8_state(state, marker):
    """A state as ComfyUI stores it, and what its values stand for."""
    stored, meant = {}, {}
    for name, value in state.items():
        layer = name.removesuffix("weight")
        if value.ndim == 1 or "bias" in name or (marker and name == "shared.weight"):
            stored[name] = value.half()
            meant[name] = stored[name].float()
            continue
        scale = (value.abs().max() / 448).float() if marker else torch.tensor(1.0)
        stored[name] = (value / scale).to(torch.float8_e4m3fn)
        meant[name] = stored[name].float() * scale
        if marker == "scaled_fp8":
            stored |= {layer + "scale_weight": scale, layer + "scale_input": torch.tensor(0.5)}
        elif marker == "comfy_quant":
            about = json.dumps({"format": "float8_e4m3fn"}).encode()
            stored[layer + "comfy_quant"] = torch.tensor(list(about), dtype=torch.uint8)
            stored[layer + "weight_scale"] = scale.reshape(1)
    if marker == "scaled_fp8":
        stored["scaled_fp8"] = torch.tensor([], dtype=torch.float8_e4m3fn)
    return stored, meant


@pytest.mark.parametrize("marker", ["", "scaled_fp8", "comfy_quant"])
def test_float8_stays_compressed_and_is_exact(t5_folder, place, marker):
    config = config_of(t5_folder)
    stored, meant = fp8_state(random_state(config), marker)
    path = place / "t5xxl_fp8_e4m3fn.safetensors"
    save_file(stored, path)
    check(path, config, meant, t5_folder)
    layer = load_text_encoder(path).model.encoder.block[1].layer[1].DenseReluDense.wo
    assert layer.stored.dtype == torch.float8_e4m3fn
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    assert torch.equal(layer.expand(slice(None)), meant[name])


def test_a_quantisation_that_is_not_read_is_named(t5_folder, place):
    stored, _ = fp8_state(random_state(config_of(t5_folder)), "comfy_quant")
    name = next(name for name in stored if name.endswith("comfy_quant"))
    stored[name] = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    save_file(stored, place / "t5.safetensors")
    with pytest.raises(CheckpointError, match=r"'nvfp4' is not read, expected one of \['float8"):
        load_text_encoder(place / "t5.safetensors")


def test_one_scale_a_row_is_read_and_another_number_is_refused(t5_folder, place):
    config = config_of(t5_folder)
    stored, meant = fp8_state(random_state(config), "comfy_quant")
    layer = "encoder.block.1.layer.1.DenseReluDense.wo."
    rows = torch.linspace(0.5, 2, 64)
    stored[layer + "weight_scale"] = rows
    meant[layer + "weight"] = stored[layer + "weight"].float() * rows[:, None]
    save_file(stored, place / "t5.safetensors")
    check(place / "t5.safetensors", config, meant, t5_folder)
    stored[layer + "weight_scale"] = rows[:7]
    save_file(stored, place / "t5.safetensors")
    with pytest.raises(
        CheckpointError, match=r"wo.weight: expected one scale, or 64, .* got \[7\]"
    ):
        load_text_encoder(place / "t5.safetensors")


def random_blocks(rows: int, width: int, kind, generator):
    """Bytes of valid blocks: anything, with factors that keep the values small."""
    import gguf

    size, count = gguf.GGML_QUANT_SIZES[kind]
    raw = generator.integers(0, 256, (rows, width // size * count), dtype=np.uint8)
    blocks = raw.reshape(-1, count)
    for start in HALVES[kind.name]:
        factors = (generator.standard_normal(len(blocks)) * 2e-3).astype(np.float16)
        blocks[:, start : start + 2] = factors.view(np.uint8).reshape(-1, 2)
    return raw


def write_gguf(path, state, kind, tokenizer=None):
    """A GGUF file of an encoder, and the state that it stands for."""
    import gguf

    writer = gguf.GGUFWriter(path, "t5encoder")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 4)
    generator = np.random.default_rng(0)
    kind = gguf.GGMLQuantizationType[kind]
    meant = {}
    for name, value in state.items():
        theirs = names.get_name(name, try_suffixes=(".weight",))
        if value.ndim == 1 or "bias" in name:
            writer.add_tensor(theirs, value.numpy())
            meant[name] = value
        elif kind.name in ("F32", "F16", "BF16"):
            raw = gguf.quants.quantize(value.numpy(), kind)
            writer.add_tensor(theirs, raw, raw_dtype=kind)
            meant[name] = torch.from_numpy(gguf.quants.dequantize(raw, kind).copy())
        else:
            rows, width = value.shape
            raw = random_blocks(rows, width, kind, generator)
            writer.add_tensor(theirs, raw, raw_dtype=kind)
            meant[name] = torch.from_numpy(gguf.quants.dequantize(raw, kind))
    if tokenizer:
        pieces, scores, charsmap = tokenizer
        writer.add_tokenizer_model("t5")
        writer.add_token_list(pieces)
        writer.add_token_scores(scores)
        if charsmap:
            writer.add_precompiled_charsmap(charsmap)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


KINDS = ["F32", "F16", "BF16", *(known.name for known in FORMATS.values())]


@NEEDS_GGUF
@pytest.mark.parametrize("kind", KINDS)
def test_gguf_stays_compressed_and_is_exact(t5_folder, place, kind):
    config = config_of(t5_folder, d_model=256, d_kv=64, d_ff=512)
    path = place / "t5.gguf"
    meant = write_gguf(path, random_state(config), kind)
    check(path, config, meant, t5_folder)
    layer = load_text_encoder(path).model.encoder.block[1].layer[1].DenseReluDense.wo
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    assert torch.equal(layer.expand(slice(None)), meant[name])
    assert layer.stored.nbytes <= 4 * layer.shape[0] * layer.shape[1] or kind == "F32"
    rows = torch.tensor([5, 0, 5])
    assert torch.equal(layer.expand(rows), meant[name][rows])


@NEEDS_GGUF
def test_gguf_of_the_ungated_t5(t5_folder, place):
    config = config_of(t5_folder, feed_forward_proj="relu")
    state = random_state(config)
    meant = write_gguf(place / "t5.gguf", state, "F32")
    check(place / "t5.gguf", config, meant, t5_folder)


@NEEDS_GGUF
def test_gguf_with_a_tokenizer_needs_no_other(t5_folder, place):
    pieces = json.loads((t5_folder / "tokenizer.json").read_text())["model"]["vocab"]
    names, scores = zip(*pieces, strict=True)
    shutil.rmtree(place / "t5")
    config = config_of(t5_folder)
    path = place / "t5.gguf"
    meant = write_gguf(path, random_state(config), "F32", (names, scores, b""))
    encoder = load_text_encoder(path)
    assert encoder.max_length == 77
    found = encoder.encode(PROMPTS)
    kept = found.embeds[:, :8][found.mask[:, :8]]
    expected = reference(config, meant, t5_folder)[found.mask[:, :8]]
    assert (kept - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_what_is_computed_in(t5_folder, place, dtype):
    """float16 is stored and never computed in: T5-XXL's feed-forward overflows in it."""
    config = config_of(t5_folder)
    state = random_state(config)
    save_file(state, place / "t5.safetensors")
    encoder = load_text_encoder(place / "t5.safetensors", dtype=dtype)
    assert encoder.model.encoder.block[0].layer[1].DenseReluDense.wo.stored.dtype == dtype
    rounded = {
        name: value if value.ndim == 1 or "bias" in name else value.to(dtype)
        for name, value in state.items()
    }
    expected = reference(config, rounded, t5_folder)
    found = encoder.encode(PROMPTS).embeds
    assert found.dtype == torch.float32
    atol = 1e-5 if dtype == torch.float16 else 0.15
    assert (found - expected).abs().max() < atol
    assert encoder.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)


def test_states_beyond_half_precision_stay_finite(t5_folder, place):
    """Feed-forward products of a million, as T5-XXL has them: float16 would give infinities."""
    config = config_of(t5_folder)
    state = random_state(config)
    for name in state:
        if "DenseReluDense.wi" in name:
            state[name] *= 1000
    save_file(state, place / "t5.safetensors")
    for dtype in (torch.float16, torch.bfloat16):
        found = load_text_encoder(place / "t5.safetensors", dtype=dtype).encode(PROMPTS)
        assert found.embeds.isfinite().all()


def test_the_slabs_of_a_large_matrix_are_the_whole(monkeypatch):
    from imagen_nodes.imagen_core.weights import quantised

    weight = torch.randn(50, 16).half()
    x = torch.randn(3, 4, 16)
    layer = quantised.Matrix(weight, torch.float32)
    monkeypatch.setattr(quantised, "SLAB", 16 * 7)
    assert torch.allclose(layer(x), x @ weight.float().T, atol=1e-5)


def test_a_file_without_a_tokenizer_says_what_to_put_where(t5_folder, place):
    save_file(random_state(config_of(t5_folder)), place / "t5.safetensors")
    shutil.rmtree(place / "t5")
    with pytest.raises(CheckpointError, match=r"Put T5's spiece.model or tokenizer.json beside it"):
        load_text_encoder(place / "t5.safetensors")
    assert load_text_encoder(place / "t5.safetensors", tokenizers=[t5_folder]).max_length == 8


def test_a_tokenizer_of_another_model_is_passed_over(t5_folder, place):
    from tokenizers import Tokenizer, models

    save_file(random_state(config_of(t5_folder)), place / "t5.safetensors")
    (place / "clip").mkdir()
    Tokenizer(models.BPE()).save(str(place / "clip" / "tokenizer.json"))
    (place / "broken").mkdir()
    (place / "broken" / "spiece.model").write_bytes(b"\x0a\xff")
    assert load_text_encoder(place / "t5.safetensors").max_length == 8


class Evil:
    """Unpickling this would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damaged_foreign_and_malicious_files_end_in_one_clear_error(t5_folder, place):
    config = config_of(t5_folder)
    state = random_state(config)
    path = place / "t5.safetensors"

    def refused(message, target=path):
        with pytest.raises(CheckpointError, match=message) as caught:
            load_text_encoder(target)
        assert str(target) in str(caught.value) or str(target.parent) in str(caught.value)

    save_file(state, path)
    truncated(path)
    refused("not a whole safetensors file")

    save_file({name: v for name, v in state.items() if "block.1.layer.1.Dense" not in name}, path)
    refused(r"3 tensors do not fit(.|\n)*missing encoder.block.1.layer.1.DenseReluDense.wi_0")
    wrong = {**state, "encoder.block.0.layer.0.SelfAttention.k.weight": torch.zeros(3, 3)}
    save_file(wrong, path)
    refused(r"SelfAttention.k.weight: expected \[64, 64\], found \[3, 3\]")
    save_file({"down_blocks.0.weight": torch.zeros(2)}, path)
    refused("not a whole T5 encoder, it lacks .*: a diffusers U-Net")
    save_file({"text_model.embeddings.token_embedding.weight": torch.zeros(2)}, path)
    refused("it lacks .*: something else, with tensors such as text_model")
    save_file({name: v for name, v in state.items() if name != "shared.weight"}, path)
    refused("it lacks 'shared.weight': a part of one, choose the folder of all its shards")

    marker = place / "executed"
    folder = place / "t5"
    config.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(marker)))
    refused("nothing in it was executed", folder)
    torch.save({"shared.weight": Evil(marker)}, folder / "pytorch_model.bin")
    refused("nothing in it was executed", folder)
    (place / "t5.pt").write_bytes(pickle.dumps(Evil(marker)))
    refused("nothing in it was executed", place / "t5.pt")
    assert not marker.exists()
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x"}}')
    refused("expected a name inside", folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").unlink()
    save_file(state, folder / "model.safetensors")
    refused("config.json lacks 'vocab_size'", folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    refused("model_type: expected 't5', got 'bert'", folder)
    (folder / "config.json").write_text("{")
    refused("not a readable JSON file", folder)


@NEEDS_GGUF
def test_damaged_gguf_files_end_in_one_clear_error(t5_folder, place):
    config = config_of(t5_folder)
    path = place / "t5.gguf"
    write_gguf(path, random_state(config), "Q8_0")
    whole = path.read_bytes()
    for keep in (4, 10, 24, 60, 700, len(whole) - 100):
        path.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match="not a whole GGUF file"):
            load_text_encoder(path)
    generator = np.random.default_rng(1)
    header = 2000
    for _ in range(60):
        damaged = bytearray(whole)
        for at in generator.integers(4, header, 3):
            damaged[at] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            load_text_encoder(path)
        except CheckpointError:
            continue


def test_gguf_tensors_that_overlap_are_refused(place):
    """Written by hand: the same 4,096 bytes under a hundred names."""
    import struct

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, 100, 0)
    for k in range(100):
        header += text(f"t{k}") + struct.pack("<IQQIQ", 2, 32, 32, 0, 0)
    data = header + bytes(-len(header) % 32) + bytes(4096)
    (place / "t5.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match="tensors that overlap"):
        load_text_encoder(place / "t5.gguf")


@NEEDS_GGUF
def test_an_unknown_gguf_type_is_named(t5_folder, place):
    import gguf

    path = place / "t5.gguf"
    writer = gguf.GGUFWriter(path, "t5encoder")
    raw = np.zeros((4, 66), dtype=np.uint8)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=gguf.GGMLQuantizationType.IQ2_XXS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="storage type 16, expected one of F32, F16, BF16"):
        load_text_encoder(path)


@NEEDS_GGUF
def test_gguf_of_a_whole_t5_gives_its_encoder(t5_folder, place):
    import gguf

    config = config_of(t5_folder)
    state = random_state(config)
    meant = write_gguf(place / "t5.gguf", state, "F32")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 4)
    writer = gguf.GGUFWriter(place / "whole.gguf", "t5")
    for name, value in state.items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.numpy())
    for name in ("output.weight", "dec.output_norm.weight", "dec.blk.0.cross_attn_q.weight"):
        writer.add_tensor(name, np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check(place / "whole.gguf", config, meant, t5_folder)


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_without_a_configuration_and_one_shard_for_all(t5_folder, place, indexed):
    config = config_of(t5_folder)
    state = random_state(config)
    folder = place / "t5"
    for k in (1, 2):
        part = {name: state[name] for name in sorted(state)[k - 1 :: 2]}
        save_file(part, folder / f"model-0000{k}-of-00002.safetensors")
    files = {
        name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(state))
    }
    if indexed:
        text = json.dumps({"weight_map": files})
        (folder / "model.safetensors.index.json").write_text(text)
    check(folder, config, state, t5_folder)
    check(folder / "model-00002-of-00002.safetensors", config, state, t5_folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002.safetensors"):
        load_text_encoder(folder)


@pytest.mark.parametrize("prefix", ["module.", "text_encoder.", "_orig_mod.", "cond_stage.t5."])
@pytest.mark.parametrize("as_folder", [True, False])
def test_what_wrappers_put_before_all_names_is_taken_off(t5_folder, place, prefix, as_folder):
    config = config_of(t5_folder)
    state = random_state(config)
    path = place / "t5" / "model.safetensors" if as_folder else place / "t5.safetensors"
    save_file({prefix + name: value for name, value in state.items()}, path)
    check(path.parent if as_folder else path, config, state, t5_folder)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool])
@pytest.mark.parametrize(
    "name", ["shared.weight", "encoder.block.1.layer.0.SelfAttention.q.weight"]
)
def test_whole_numbers_need_their_scales(t5_folder, place, kind, name):
    config = config_of(t5_folder)
    state = random_state(config)
    whole = (state[name] * 50).round().to(kind)
    save_file({**state, name: whole}, place / "t5.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}: expected floating-point weights"):
        load_text_encoder(place / "t5.safetensors")
    if kind == torch.int8 and "SelfAttention" in name:
        scales = {name.removesuffix("weight") + "weight_scale": torch.tensor([0.02])}
        save_file({**state, name: whole, **scales}, place / "t5.safetensors")
        check(place / "t5.safetensors", config, {**state, name: whole.float() * 0.02}, t5_folder)


@pytest.mark.parametrize("key", ["num_layers", "d_model", "vocab_size", "num_heads", "d_ff"])
@pytest.mark.parametrize("value", [10**9, 0, -1, "2", 1.5, True, None, [2]])
def test_sizes_of_a_configuration_are_bounded_before_they_are_trusted(t5_folder, place, key, value):
    config = config_of(t5_folder)
    save_file(random_state(config), place / "t5" / "model.safetensors")
    (place / "t5" / "config.json").write_text(json.dumps({**config.to_dict(), key: value}))
    with pytest.raises(CheckpointError, match=r"config\.json: not a T5 encoder"):
        load_text_encoder(place / "t5")


def test_the_number_of_a_layer_is_bounded_too(t5_folder, place):
    state = random_state(config_of(t5_folder))
    save_file({**state, f"encoder.block.{10**9}.layer": torch.zeros(1)}, place / "t5.safetensors")
    with pytest.raises(CheckpointError, match="layers: expected a whole number from 1 to 256"):
        load_text_encoder(place / "t5.safetensors")


def test_a_lora_of_a_t5_is_called_one(place):
    name = "encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
    save_file({name: torch.zeros(4, 64)}, place / "t5.safetensors")
    with pytest.raises(CheckpointError, match="a LoRA"):
        load_text_encoder(place / "t5.safetensors")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_t5_with_byte_order_marks_is_read(t5_folder, place, encoding):
    config = config_of(t5_folder)
    state = random_state(config)
    save_file(state, place / "t5" / "model.safetensors")
    config.save_pretrained(place / "t5")
    for path in (place / "t5").glob("*.json"):
        path.write_bytes(path.read_text("utf-8").encode(encoding))
    check(place / "t5", config, state, t5_folder)


@pytest.mark.parametrize("marker", ["scaled_fp8", "comfy_quant"])
def test_float8_that_is_said_to_have_a_scale_needs_it(t5_folder, place, marker):
    stored, _ = fp8_state(random_state(config_of(t5_folder)), marker)
    name = "encoder.block.1.layer.1.DenseReluDense.wo."
    del stored[name + ("scale_weight" if marker == "scaled_fp8" else "weight_scale")]
    save_file(stored, place / "t5.safetensors")
    with pytest.raises(
        CheckpointError, match=f"{name}weight: is said to be quantised with a scale"
    ):
        load_text_encoder(place / "t5.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bool])
def test_a_dtype_without_arithmetic_is_refused(t5_folder, dtype):
    with pytest.raises(ValueError, match="dtype: expected what is computed in"):
        load_text_encoder(t5_folder, dtype=dtype)


def test_a_file_that_is_changed_while_it_is_mapped_is_an_error_a_replaced_one_is_not(
    t5_folder, tmp_path
):
    """A shorter file ended the process (SIGBUS), an overwritten one changed results in silence."""
    shutil.copytree(t5_folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    encoder = load_text_encoder(tmp_path)
    before = encoder.encode(["a red apple"]).embeds
    (tmp_path / "new").write_bytes(whole[:100])
    os.replace(tmp_path / "new", path)
    encoder.cache.clear()
    assert torch.equal(encoder.encode(["a red apple"]).embeds, before)
    path.write_bytes(whole)
    encoder = load_text_encoder(tmp_path)
    with path.open("r+b") as file:
        file.truncate(len(whole) - 4)
    with pytest.raises(RuntimeError, match="model.safetensors: was changed while it was loaded"):
        encoder.encode(["a red apple"])
