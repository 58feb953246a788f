"""The judge network: its file, its captions, its pictures."""

from dataclasses import replace

import pytest
import torch

from imagen_nodes.imagen_core.evaluation.judge import (
    Expert,
    Judge,
    JudgeConfig,
    as_seen,
    compared_to,
    hashed,
    load_expert,
    save_expert,
)
from imagen_nodes.imagen_core.weights.errors import CheckpointError
from imagen_nodes.imagen_core.weights.files import write_tensors

SMALL = JudgeConfig(("noto", "flat"), (8, 16, 24), 2, 200, 16, 12)


def small_expert():
    torch.manual_seed(0)
    judge = Judge(SMALL).requires_grad_(False).eval()
    judge.load_state_dict({name: v.half().float() for name, v in judge.state_dict().items()})
    features = judge.look(torch.rand(5, 64, 64, 3)).features.half().float()
    return Expert(judge, ("apple, noto style", "a fox"), features)


def test_a_judge_comes_back_from_its_file(tmp_path):
    expert = small_expert()
    save_expert(expert, tmp_path / "judge.safetensors")
    loaded = load_expert(tmp_path / "judge.safetensors")
    assert loaded.judge.config == SMALL and loaded.captions == expert.captions
    assert torch.equal(loaded.features, expert.features)
    pictures = torch.rand(3, 64, 64, 3)
    assert torch.equal(loaded.judge.look(pictures).styles, expert.judge.look(pictures).styles)
    captions = ["an apple", "", "a fox on a hill"]
    read = loaded.judge.embed_captions(captions)
    assert torch.equal(read, expert.judge.embed_captions(captions))
    assert torch.allclose(read.norm(dim=1), torch.ones(3))


def test_another_file_is_no_judge(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"format": "other"})
    with pytest.raises(CheckpointError, match="expected a judge"):
        load_expert(tmp_path / "x.safetensors")


def test_captions_are_words_and_letters_in_order():
    assert hashed("Red  Apple!", SMALL) == hashed("red apple", SMALL)
    assert hashed("apple red", SMALL) != hashed("red apple", SMALL)
    salted = replace(SMALL, salt="other ")
    assert hashed("red apple", salted) != hashed("red apple", SMALL)


def test_pictures_of_any_side_are_seen_alike():
    small = torch.rand(2, 64, 64, 3)
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.allclose(as_seen(large), as_seen(small), atol=1e-6)
    assert as_seen(torch.ones(1, 100, 80, 4)).shape == (1, 3, 64, 64)
    assert as_seen(torch.ones(1, 100, 80, 3)).allclose(torch.ones(()))


def test_a_reference_of_ones_own_takes_the_place_of_the_judges():
    own = compared_to(small_expert(), ["a dog", "a dog", "a cat"], torch.rand(3, 64, 64, 3))
    assert own.captions == ("a dog", "a cat") and len(own.features) == 3
