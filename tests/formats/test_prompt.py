"""Encoded prompts on disk: the same tensors come back, and other files are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imagen_nodes.imagen_core import (
    CheckpointError,
    EncodedPrompt,
    TextEmbedding,
    load_text,
    save_text,
)


def states(seed, rows=1):
    embeds = torch.randn(rows, 5, 16, generator=torch.Generator().manual_seed(seed))
    return TextEmbedding(embeds, torch.arange(5).expand(rows, 5) < 3)


def scheduled(*seeds):
    """States that change at 0.25, 0.5 and so on."""
    first, *later = (states(seed) for seed in seeds)
    return replace(first, later=tuple((0.25 * (i + 1), text) for i, text in enumerate(later)))


SAME = states(4)
IN_REGION = EncodedPrompt(states(5), states(1), states(6), 0.25).with_region(
    EncodedPrompt(states(7), states(1)), torch.rand(3, 3)
)


def assert_same(text, found):
    assert found.mixer == text.mixer
    for name in ("text", "null_text", "second", "style"):
        ours, theirs = getattr(text, name), getattr(found, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.equals(theirs) and ours.embeds.dtype == theirs.embeds.dtype)
    for ours, theirs in zip(text.regions, found.regions, strict=True):
        assert torch.equal(ours.mask, theirs.mask)
        assert_same(ours.prompt, theirs.prompt)


@pytest.mark.parametrize(
    "text",
    [
        EncodedPrompt(states(0), states(1)),
        EncodedPrompt(states(0, 2).to(dtype=torch.float16), states(1).to(dtype=torch.float16)),
        EncodedPrompt(states(0), states(1), states(2), 0.25, states(3)),
        EncodedPrompt(SAME, SAME, SAME, 0.5, SAME),
        EncodedPrompt(scheduled(0, 1, 2), scheduled(3), states(1), 0.5, scheduled(4, 5)),
        EncodedPrompt(states(0), states(1))
        .with_region(EncodedPrompt(scheduled(2, 3), states(1)), torch.rand(4, 6))
        .with_region(IN_REGION, torch.rand(1, 8, 8), 0.5),
    ],
    ids=["plain", "two rows in halves", "mixed", "shared memory", "over the steps", "regions"],
)
def test_what_is_saved_comes_back(tmp_path, text):
    path = tmp_path / "deeper" / "text.safetensors"
    save_text(path, text)
    found = load_text(path)
    assert_same(text, found)
    assert [entry.name for entry in path.parent.iterdir()] == ["text.safetensors"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_text(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(
        CheckpointError,
        match="not an encoded prompt as Imagen Save Text writes it: its header says nothing of one",
    ):
        load_text(path)
    save_file({"text.embeds": torch.zeros(1, 5, 2)}, path, {"imagen": '{"kind": "imagen text"}'})
    with pytest.raises(CheckpointError, match="not an encoded prompt"):
        load_text(path)
    mask = torch.ones(1, 4, dtype=torch.bool)
    tensors = {"text.embeds": torch.zeros(1, 5, 2), "text.mask": mask}
    save_file(tensors, path, {"imagen": '{"kind": "imagen text", "mixer": 0}'})
    with pytest.raises(CheckpointError, match="text: the mask does not fit the states"):
        load_text(path)
    path.write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_text(path)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")
def test_a_loaded_file_is_not_kept_mapped(tmp_path):
    """Windows refuses to replace a file that is mapped."""
    path = tmp_path / "text.safetensors"
    save_text(path, EncodedPrompt(states(0), states(1)))
    text = load_text(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    save_text(path, text)


def test_states_of_whole_numbers_are_refused(tmp_path):
    path = tmp_path / "text.safetensors"
    whole = TextEmbedding(states(0).embeds.int(), states(0).mask)
    save_text(path, EncodedPrompt(whole, whole))
    with pytest.raises(CheckpointError, match="text: states of torch.int32"):
        load_text(path)
