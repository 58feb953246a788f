"""Layouts of DeepFloyd IF's weights from one to another and back: bit for bit, whole or not at all."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imagen_nodes.cli.main import main
from imagen_nodes.imagen_core import (
    PRESETS,
    CheckpointError,
    Stage,
    StageConfig,
    load_stage,
    save_stage,
)
from imagen_nodes.imagen_core.formats.convert import convert
from imagen_nodes.imagen_core.weights import files
from imagen_nodes.imagen_core.weights.files import write_tensors


@pytest.fixture
def published(deepfloyd):
    return deepfloyd(1)


@pytest.mark.parametrize("number", [1, 2])
def test_there_and_back_is_the_same_tensors(deepfloyd, tmp_path, number):
    published = deepfloyd(number)
    assert convert(published.folder, tmp_path / "original") == "original"
    assert convert(tmp_path / "original", tmp_path / "diffusers") == "diffusers"
    before = load_file(published.folder / "unet/diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "diffusers/diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("layout", ["imagen", "diffusers", "original"])
def test_a_single_file_of_any_layout_says_what_it_is(published, tmp_path, layout, capsys):
    """A tiny network's heads are narrower than IF's: the header alone can say so."""
    stage, path = load_stage(published.folder), tmp_path / "stage.safetensors"
    assert convert(published.folder, path, layout) == layout
    found = load_stage(path)
    assert found.config == stage.config
    for name, tensor in stage.unet.state_dict().items():
        assert torch.equal(found.unet.state_dict()[name], tensor), name
    assert main(["info", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    kind = "Imagen stage" if layout == "imagen" else "DeepFloyd IF stage I"
    assert told["kind"] == kind
    assert told["parameters"] == sum(p.numel() for p in published.peer.parameters())
    assert told["dtypes"] == ["float32"]


def test_tensors_that_are_stacked_may_differ_in_dtype(published, tmp_path):
    shutil.copytree(published.folder, tmp_path / "mixed")
    file = tmp_path / "mixed/unet/diffusion_pytorch_model.safetensors"
    half = {
        name: tensor.half() if "to_q" in name else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(half, file)
    assert any(tensor.dtype == torch.float16 for tensor in half.values())
    path = tmp_path / "stage.safetensors"
    convert(tmp_path / "mixed", path, "imagen")
    ours, theirs = load_stage(path), load_stage(tmp_path / "mixed")
    for name, tensor in theirs.unet.state_dict().items():
        assert torch.equal(ours.unet.state_dict()[name], tensor), name


def test_a_file_is_not_written_with_other_tensors_than_its_header_tells(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"a: expected torch.float32 \[2\], got torch.float16"
    ):
        write_tensors(
            tmp_path / "x.safetensors",
            {"a": torch.zeros(2)},
            {},
            lambda name: torch.zeros(2, dtype=torch.float16),
        )
    assert not list(tmp_path.iterdir())


def test_diffusers_and_torch_read_what_is_written(published, tmp_path):
    convert(published.folder, tmp_path / "original")
    convert(tmp_path / "original", tmp_path / "diffusers")
    peer = type(published.peer).from_pretrained(tmp_path / "diffusers")
    for name, tensor in published.peer.state_dict().items():
        assert torch.equal(peer.state_dict()[name], tensor), name
    written = torch.load(tmp_path / "original/pytorch_model.bin", weights_only=True)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in written.values())


def test_the_same_bytes_are_written_each_time(published, tmp_path):
    """torch.save puts the name of what it writes to into the file: a temporary's was there."""
    for name in ("one", "two"):
        convert(published.folder, tmp_path / name)
    first, second = ((tmp_path / n / "pytorch_model.bin").read_bytes() for n in ("one", "two"))
    assert first == second


def test_the_command_says_what_it_wrote(published, tmp_path, capsys):
    arguments = ["convert", str(published.folder), str(tmp_path / "out"), "--layout", "original"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: original layout\n"
    assert sorted(os.listdir(tmp_path / "out")) == ["config.yml", "pytorch_model.bin"]
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["out", "out.safetensors"])
def test_a_failed_conversion_leaves_nothing(published, tmp_path, monkeypatch, target):
    def fail(data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "memoryview", fail, raising=False)
    with pytest.raises(CheckpointError, match="could not be written"):
        convert(published.folder, tmp_path / target)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("target", "layout", "message"),
    [
        ("out.ckpt", "original", "expected a name that ends in .safetensors, or a folder's name"),
        ("out", "imagen", "expected a name that ends in .safetensors"),
        ("out", "onnx", "layout must be one of"),
    ],
)
def test_bad_targets_are_named(published, tmp_path, target, layout, message):
    with pytest.raises(CheckpointError, match=message):
        convert(published.folder, tmp_path / target, layout)


def test_other_stages_have_no_published_layout(tmp_path):
    for preset in ("tiny-base", "tiny-sr"):
        path = tmp_path / f"{preset}.safetensors"
        save_stage(Stage(StageConfig("base", 16, 1, PRESETS[preset])), path)
        with pytest.raises(CheckpointError, match="only DeepFloyd IF's networks"):
            convert(path, tmp_path / "out")


def test_written_files_are_safetensors_to_the_byte(tmp_path):
    """Every dtype, no dimension, none at all, and a name that JSON must escape."""
    tensors = {
        str(dtype): torch.ones(3, 5).to(dtype) for dtype in files.DTYPES if dtype != torch.bool
    }
    tensors |= {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4), 'a "b"': torch.eye(2)}
    files.write_tensors(tmp_path / "x.safetensors", tensors, {"key": "ü"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].float(), tensor.float())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"key": "ü"}


MEASURE = """
import resource, sys, torch
from imagen_nodes.imagen_core import load_stage
import imagen_nodes.imagen_core.formats.convert as c
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
exec(sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def peak(code):
    """Bytes by which the resident memory of a fresh process grows at most."""
    run = subprocess.run([sys.executable, "-c", MEASURE, code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A stage I of 170 MB in half precision, wide enough that tensors outweigh all else."""
    folder = tmp_path_factory.mktemp("large")
    config = PRESETS["paper-base64"]
    from dataclasses import replace

    config = replace(
        config, channels=(128, 256, 384, 512), context_dim=512, time_dim=512, text_dim=1024
    )
    stage = Stage(StageConfig("base", 64, 1, config)).to(dtype=torch.float16)
    save_stage(stage, folder / "stage.safetensors")
    return folder


@pytest.mark.skipif(
    sys.platform != "linux", reason="resident memory is measured as Linux counts it"
)
def test_loading_peaks_under_the_weights_and_a_seventh(large):
    size = (large / "stage.safetensors").stat().st_size
    assert size > 150e6
    assert peak(f"load_stage({str(large / 'stage.safetensors')!r})") < 1.15 * size


@pytest.mark.skipif(
    sys.platform != "linux", reason="resident memory is measured as Linux counts it"
)
def test_converting_holds_one_tensor_at_a_time(large, tmp_path):
    size = (large / "stage.safetensors").stat().st_size
    code = f"c.convert({str(large / 'stage.safetensors')!r}, {str(tmp_path / 'o.safetensors')!r}, 'original')"
    assert peak(code) < 0.3 * size
