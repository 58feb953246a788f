"""Pictures that a worker makes while the network trains."""

import numpy as np
import pytest
import torch

from imagen_nodes.imagen_core import load_text_encoder
from imagen_nodes.imagen_core.training.data import Prompts, Stream
from imagen_nodes.imagen_core.training.recipe import DataSection

CPU = torch.device("cpu")


def make(rng):
    level = int(rng.integers(0, 256))
    return np.full((4, 4, 3), level, np.uint8), f"level {level}"


@pytest.fixture
def encoder(t5_folder):
    return load_text_encoder(t5_folder, CPU)


def take(stream, section, count, step=0, seed=7):
    batches = stream.batches(section, 1, 6, seed, step)
    return [next(batches) for _ in range(count)]


def test_a_stream_that_goes_on_at_a_step_draws_what_the_first_would_have(encoder):
    section = DataSection("t5", text_dropout=0.3)
    stream = Stream(make, encoder, CPU)
    whole, later = take(stream, section, 4), take(stream, section, 2, step=2)
    for one, other in zip(whole[2:], later, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.text.embeds, other.text.embeds)
    assert not torch.equal(whole[0].images, whole[1].images)


def test_states_belong_to_their_pictures_but_where_the_caption_is_dropped(encoder):
    batches = take(Stream(make, encoder, CPU), DataSection("t5", text_dropout=0.25), 20)
    empty = encoder.encode([""]).embeds[0]
    dropped = 0
    for batch in batches:
        for image, states in zip(batch.images, batch.text.embeds, strict=True):
            expected = encoder.encode([f"level {int(image[0, 0, 0])}"]).embeds[0]
            gone = torch.allclose(states, empty, atol=2e-3)
            assert gone or torch.allclose(states, expected, atol=2e-3)
            dropped += gone
    assert 15 <= dropped <= 45


def test_prompts_are_encoded_once_and_the_longest_unused_are_forgotten(encoder, monkeypatch):
    asked = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: asked.extend(texts) or encode(texts))
    prompts = Prompts(encoder, keep=3)
    first = prompts.encode(["a", "b", "a"])
    assert asked == ["a", "b"]
    assert torch.equal(first.embeds[0], first.embeds[2])
    prompts.encode(["a", "c", "d"])
    prompts.encode(["a"])
    assert asked == ["a", "b", "c", "d"]
    prompts.encode(["b"])
    assert asked == ["a", "b", "c", "d", "b"]
