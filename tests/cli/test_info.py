"""`imagen info` on text encoders in every form, read off headers alone, and on files of other kinds."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imagen_nodes.cli.main import main
from imagen_nodes.imagen_core import EncodedPrompt, TextEmbedding, save_text
from imagen_nodes.imagen_core.text.t5 import T5Config

TINY = T5Config(vocab=40, width=64, layers=2, heads=4, head_dim=16, hidden=96)
V11 = {  # width, hidden, layers, heads; parameters as transformers counts them
    "small": ((512, 1024, 8, 6), 35_332_800),
    "base": ((768, 2048, 12, 12), 109_628_544),
    "large": ((1024, 2816, 24, 16), 341_231_104),
    "XL": ((2048, 5120, 24, 32), 1_223_527_424),
    "XXL": ((4096, 10240, 24, 64), 4_762_310_656),
}
HALVES = ("layer_norm.weight", "relative_attention_bias.weight")
MIB = 2**20


def told(path, capsys):
    code = main(["info", str(path), "--json"])
    caught = capsys.readouterr()
    assert code == 0, caught.err
    return json.loads(caught.out.splitlines()[-1])


def state_of(config, dtype):
    return {
        name: torch.zeros(shape, dtype=torch.float16 if name.endswith(HALVES) else dtype)
        for name, shape in config.shapes().items()
    }


def sparse(path, config, kind, width):
    """A safetensors file of full size that takes no room: its header, then a hole; its weights' bytes."""
    header, end = {}, 0
    for name, shape in config.shapes().items():
        size = int(np.prod(shape)) * width
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


def peak():
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="of Linux")
@pytest.mark.parametrize("size", V11)
def test_a_lone_file_of_every_size_is_named_without_reading_its_weights(tmp_path, capsys, size):
    (width, hidden, layers, heads), parameters = V11[size]
    path = tmp_path / "t5_fp16.safetensors"
    count = sparse(path, T5Config(32128, width, layers, heads, 64, hidden), "F16", 2)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    found = told(path, capsys)
    assert peak() - before < 64 * MIB
    assert found["kind"] == "T5 text encoder"
    assert found["size"] == f"T5 v1.1 {size}"
    assert found["layout"] == "Hugging Face safetensors, one file"
    assert found["stored as"] == ["float16"]
    assert (found["parameters"], found["bytes"]) == (parameters, count)
    assert found["bytes"] == 2 * parameters


@pytest.mark.parametrize("marker", ["plain", "scaled_fp8", "comfy_quant"])
def test_float8_files_say_whether_they_have_scales(tmp_path, capsys, marker):
    state = state_of(TINY, torch.float8_e4m3fn)
    weights = sum(value.nbytes for value in state.values())
    for name in [name for name in state if not name.endswith(HALVES) and marker != "plain"]:
        layer = name.removesuffix("weight")
        ending = "scale_weight" if marker == "scaled_fp8" else "weight_scale"
        state[layer + ending] = torch.tensor(0.5)
        if marker == "comfy_quant":
            about = list(b'{"format": "float8_e4m3fn"}')
            state[layer + "comfy_quant"] = torch.tensor(about, dtype=torch.uint8)
    if marker == "scaled_fp8":
        state["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    save_file(state, tmp_path / "t5.safetensors")
    found = told(tmp_path / "t5.safetensors", capsys)
    kind = "float8_e4m3fn" + (" with scales" if marker != "plain" else "")
    assert found["stored as"] == [kind, "float16"]
    assert found["bytes"] == weights
    assert (found["size"], found["d_model"], found["num_layers"]) == ("custom", 64, 2)


def test_gguf_says_its_block_format(tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    config = T5Config(vocab=64, width=256, layers=1, heads=4, head_dim=64, hidden=512)
    writer = gguf.GGUFWriter(tmp_path / "t5.gguf", "t5encoder")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 1)
    kind, parameters = gguf.GGMLQuantizationType.Q4_K, 0
    for name, shape in config.shapes().items():
        theirs = names.get_name(name, try_suffixes=(".weight",))
        parameters += int(np.prod(shape))
        if name.endswith(HALVES):
            writer.add_tensor(theirs, np.zeros(shape, np.float32))
        else:
            raw = np.zeros((shape[0], shape[1] // 256 * 144), np.uint8)
            writer.add_tensor(theirs, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = told(tmp_path / "t5.gguf", capsys)
    assert found["layout"] == "GGUF, one file"
    assert found["stored as"] == ["Q4_K", "float32"]
    assert found["parameters"] == parameters


def test_folders_torch_files_and_encoded_prompts(t5_folder, tmp_path, capsys):
    found = told(t5_folder, capsys)
    assert found["layout"] == "Hugging Face safetensors, folder"
    assert found["files"] == ["model.safetensors"]
    torch.save(state_of(TINY, torch.bfloat16), tmp_path / "t5.bin")
    found = told(tmp_path / "t5.bin", capsys)
    assert (found["layout"], found["stored as"][0]) == ("Hugging Face torch, one file", "bfloat16")
    states = TextEmbedding(torch.zeros(1, 5, 16), torch.ones(1, 5, dtype=torch.bool))
    save_text(tmp_path / "text.safetensors", EncodedPrompt(states, states))
    assert told(tmp_path / "text.safetensors", capsys)["kind"] == "encoded prompt"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lora.safetensors", {"lora_up.weight": torch.zeros(2)}, "it looks like a LoRA"),
        ("x.safetensors", {"a": torch.zeros(2)}, "something else, with tensors such as a"),
        ("t5.safetensors", "half", "not a whole T5 encoder, it lacks .*: a part of one"),
        ("t5.gguf", b"GGUF\x03\0\0\0", "not a whole GGUF file"),
        ("x.gguf", b"", "not a whole safetensors file"),
        ("x.bin", b"\x80\x04.", "cannot be read as plain weights"),
    ],
)
def test_anything_else_ends_in_one_clear_error(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if content == "half":
        state = state_of(TINY, torch.float16)
        content = {k: v for k, v in state.items() if "shared" not in k}
    save_file(content, path) if isinstance(content, dict) else path.write_bytes(content)
    assert main(["info", str(path)]) == 2
    caught = capsys.readouterr()
    assert re.search(message, caught.err), caught.err
    assert str(path) in caught.err
    assert caught.err.count("\n") == 1
    assert not caught.out


@pytest.mark.parametrize("name", ["notes.txt", "x.safetensors"])
def test_a_file_of_no_known_kind_is_told_what_could_be(name, tmp_path, capsys):
    (tmp_path / name).write_text("hello\n" * 20)
    assert main(["info", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    if name == "notes.txt":
        assert "expected weights" in said and "header" not in said
    else:
        assert "not a whole safetensors file" in said


def test_a_cascade_is_known_by_its_name(capsys):
    found = told("emoji", capsys)
    assert found["kind"] == "cascade" and found["base"] == "base.safetensors"
    assert Path(found["path"]).is_dir()
