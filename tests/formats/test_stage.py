"""Stage files and cascade folders: exact, atomic, and clear about what is wrong."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagen_nodes.imagen_core import (
    PRESETS,
    Cascade,
    CheckpointError,
    SamplingDefaults,
    Schedule,
    Stage,
    StageConfig,
    load_cascade,
    load_stage,
    save_stage,
)
from imagen_nodes.imagen_core.weights import files

CONFIGS = {
    "base": StageConfig("base", 16, 1, PRESETS["tiny-base"], Schedule("cosine", 0.5), "eps"),
    "sr": StageConfig(
        "sr", 64, 4, PRESETS["tiny-sr"], defaults=SamplingDefaults(5, "ddim", 2.0, 0.2)
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_stage_comes_back_bit_for_bit(tmp_path, kind, dtype):
    stage = Stage(CONFIGS[kind]).to(dtype=dtype)
    save_stage(stage, tmp_path / "stage.safetensors")
    loaded = load_stage(tmp_path / "stage.safetensors")
    assert loaded.config == stage.config
    assert loaded.dtype == dtype
    for name, tensor in stage.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], tensor), name


def test_the_asked_dtype_is_computed_in(tmp_path):
    save_stage(Stage(CONFIGS["base"]).to(dtype=torch.float16), tmp_path / "s.safetensors")
    assert load_stage(tmp_path / "s.safetensors", dtype=torch.float32).dtype == torch.float32


def test_all_bad_tensors_are_named_in_one_error(tmp_path):
    path = tmp_path / "s.safetensors"
    save_stage(Stage(CONFIGS["base"]), path)
    tensors = load_file(path)
    del tensors["conv_in.bias"]
    tensors["stranger"] = torch.zeros(2)
    tensors["conv_out.bias"] = torch.zeros(9)
    metadata = {"format": "imagen_nodes.stage", "config": json.dumps(CONFIGS["base"].to_dict())}
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError) as caught:
        load_stage(path)
    message = str(caught.value)
    assert "missing conv_in.bias [16]" in message
    assert "unexpected stranger [2]" in message
    assert "conv_out.bias: expected [3], found [9]" in message
    assert str(path) in message


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "s.safetensors"
    save_stage(Stage(CONFIGS["base"]), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_stage(path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "a T5 encoder"),
        ("down_blocks.0.resnets.0.conv1.weight", "a diffusers U-Net"),
        ("something", "tensors such as something"),
    ],
)
def test_a_foreign_file_is_told_apart(tmp_path, name, what):
    save_file({name: torch.zeros(2)}, tmp_path / "f.safetensors")
    with pytest.raises(CheckpointError, match=f"not an Imagen stage.*{what}"):
        load_stage(tmp_path / "f.safetensors")


def test_a_damaged_configuration_is_named(tmp_path):
    metadata = {"format": "imagen_nodes.stage", "config": '{"kind": "base"}'}
    save_file({"x": torch.zeros(1)}, tmp_path / "f.safetensors", metadata)
    with pytest.raises(CheckpointError, match="bad configuration"):
        load_stage(tmp_path / "f.safetensors")


class RunsCode:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))]
)
@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_a_pickle_is_refused_and_not_executed(tmp_path, save, ending):
    path, trace = tmp_path / f"evil.{ending}", tmp_path / "executed"
    save(RunsCode(trace), path)
    with pytest.raises(CheckpointError, match="pickled checkpoint"):
        load_stage(path)
    assert not trace.exists()


def test_a_header_length_that_looks_like_a_pickle_is_none(tmp_path):
    """The file's first byte is the low byte of that length: 0x80 in one file of 32."""
    path = tmp_path / "s.safetensors"
    tensors = {k: v.contiguous() for k, v in Stage(CONFIGS["base"]).unet.state_dict().items()}
    for padding in range(256):
        config = json.dumps(CONFIGS["base"].to_dict())
        metadata = {"format": "imagen_nodes.stage", "config": config, "pad": "x" * padding}
        save_file(tensors, path, metadata)
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert load_stage(path).config == CONFIGS["base"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_stage(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fault):
    path = tmp_path / "s.safetensors"
    save_stage(Stage(CONFIGS["base"]), path)
    before = path.read_bytes()

    def fail(tensor):
        raise fault

    monkeypatch.setattr(files, "memoryview", fail, raising=False)
    expected = CheckpointError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save_stage(Stage(CONFIGS["base"]), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s.safetensors"]


@pytest.fixture
def cascade_folder(tmp_path, t5_folder):
    folder = tmp_path / "mine"
    shutil.copytree(t5_folder, folder / "t5")
    save_stage(Stage(CONFIGS["base"]), folder / "base.safetensors")
    save_stage(Stage(CONFIGS["sr"]), folder / "sr.safetensors")
    names = {"text_encoder": "t5", "base": "base.safetensors", "sr256": "sr.safetensors"}
    (folder / "cascade.json").write_text(json.dumps(names))
    return folder


def test_a_folder_is_a_cascade(cascade_folder):
    cascade = load_cascade(cascade_folder)
    assert cascade.sr1024 is None
    assert cascade.generate("a red dog", upto=64, steps=1).shape == (1, 64, 64, 3)
    assert cascade.generate("a dog", upto=16, steps=1, batch_size=3).shape == (3, 16, 16, 3)
    with pytest.raises(ValueError, match=r"upto must be one of \[16, 64\], got 1024"):
        cascade.generate("a red dog", upto=1024)
    with pytest.raises(ValueError, match="batch_size: expected 2, one for each prompt, got 3"):
        cascade.generate(["a dog", "a cat"], batch_size=3)


def test_a_cascade_is_a_list_of_stages(cascade_folder):
    """From one to many; T5 may lie elsewhere, named by a path or a link."""
    shared = cascade_folder.parent / "shared"
    (cascade_folder / "t5").rename(shared)
    (cascade_folder / "link").symlink_to(shared)
    files = ["base.safetensors", "sr.safetensors", "sr.safetensors", "sr.safetensors"]
    for encoder, count in (("../shared", 4), (str(shared), 2), ("link", 1)):
        names = {"text_encoder": encoder, "stages": files[:count]}
        (cascade_folder / "cascade.json").write_text(json.dumps(names))
        cascade = load_cascade(cascade_folder)
        assert [stage.config.kind for stage in cascade.stages] == ["base", "sr", "sr", "sr"][:count]
        assert cascade.base is cascade.stages[0]
        assert [cascade.sr256, cascade.sr1024] == [*cascade.stages[1:3], None, None][:2]
    assert cascade.generate("a dog", steps=1).shape == (1, 16, 16, 3)
    two = Cascade(cascade.text_encoder, cascade.base, None, load_stage(cascade_folder / files[1]))
    assert two.generate("a dog", steps=1).shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match="stage: expected a base stage, got a super-resolution"):
        Cascade(cascade.text_encoder, two.stages[1])


@pytest.mark.parametrize(
    "names",
    [
        {"text_encoder": "t5", "stages": []},
        {"text_encoder": "t5", "stages": [3]},
        {"text_encoder": "t5", "stages": "base.safetensors"},
        {"text_encoder": ["t5"], "base": "base.safetensors"},
        {"text_encoder": "t5", "sr256": "sr.safetensors"},
        {"text_encoder": "//host/t5", "base": "base.safetensors"},
        {"text_encoder": "gone", "base": "base.safetensors"},
        [],
        "base",
    ],
)
def test_a_cascade_that_names_no_stage_or_text_encoder_is_refused(cascade_folder, names):
    (cascade_folder / "cascade.json").write_text(json.dumps(names))
    with pytest.raises(CheckpointError, match=r"cascade.json: (expected|text_encoder: )"):
        load_cascade(cascade_folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/../..", ""])
def test_names_do_not_leave_the_folder(cascade_folder, name):
    outside = cascade_folder.parent / "outside.safetensors"
    shutil.copy(cascade_folder / "base.safetensors", outside)
    (cascade_folder / "cascade.json").write_text(json.dumps({"text_encoder": "t5", "base": name}))
    with pytest.raises(CheckpointError, match="expected a name inside"):
        load_cascade(cascade_folder)


def test_links_in_a_folder_are_followed(cascade_folder):
    outside = cascade_folder.parent / "outside.safetensors"
    shutil.move(cascade_folder / "base.safetensors", outside)
    (cascade_folder / "link.safetensors").symlink_to(outside)
    names = {"text_encoder": "t5", "base": "link.safetensors"}
    (cascade_folder / "cascade.json").write_text(json.dumps(names))
    assert load_cascade(cascade_folder).base.config == load_stage(outside).config


def test_an_unknown_cascade_lists_the_bundled_ones(tmp_path):
    with pytest.raises(CheckpointError, match=r"one of \['emoji'\] or a folder"):
        load_cascade(tmp_path / "nothing")
    (tmp_path / "cascade.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"cascade.json: expected a JSON object \{"):
        load_cascade(tmp_path)


def test_the_bundled_cascade_fits_its_limit():
    folder = files.Path(files.__file__).parent.parent / "pretrained" / "emoji"
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 64 * 2**20
    for name in ("base", "sr256", "sr1024"):
        assert load_stage(folder / f"{name}.safetensors").dtype == torch.float16


def test_a_residual_network_is_refused_for_anything_but_x0():
    unet = replace(PRESETS["tiny-sr"], residual=True)
    assert StageConfig("sr", 64, 4, unet, prediction="x0").unet.residual
    with pytest.raises(ValueError, match="prediction: expected 'x0'"):
        StageConfig("sr", 64, 4, unet, prediction="v")


def test_a_cascade_s_folder_is_no_stage():
    folder = Path(files.__file__).parents[1] / "pretrained" / "emoji"
    with pytest.raises(
        CheckpointError, match="expected a stage, got a cascade's folder; load_cascade"
    ):
        load_stage(folder)
