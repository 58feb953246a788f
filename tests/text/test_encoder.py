"""The text encoder: T5 itself, the cache, padding, cutting, and the null text."""

import itertools
import random
import sys
import threading

import pytest
import torch

from imagen_nodes.imagen_core import CheckpointError, TextEmbedding, load_text_encoder
from imagen_nodes.imagen_core.text.t5 import position_buckets


@pytest.fixture
def encoder(t5_folder):
    return load_text_encoder(t5_folder)


def test_states_are_those_of_transformers(encoder, t5_folder):
    from transformers import AutoTokenizer, T5EncoderModel

    prompts = ["a red apple", "the dog sat on a hill", ""]
    tokens = AutoTokenizer.from_pretrained(t5_folder)(
        prompts, padding="max_length", max_length=8, truncation=True, return_tensors="pt"
    )
    model = T5EncoderModel.from_pretrained(t5_folder).eval()
    with torch.no_grad():
        expected = model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).last_hidden_state
    found = encoder.encode(prompts)
    assert torch.allclose(found.embeds, expected, atol=1e-5)
    assert torch.equal(found.mask, tokens.attention_mask.bool())


def test_golden_numbers_hold_in_every_version_of_transformers(encoder):
    """Made with transformers 5.23; 4.50 must give them too."""
    embeds = encoder.encode(["a red apple, noto style"]).embeds[0]
    assert torch.allclose(embeds[:3, :4], torch.tensor(GOLDEN), atol=1e-4)


def test_a_prompt_is_encoded_once(encoder):
    calls = []
    forward = encoder.model.forward

    def counted(*arguments, **named):
        calls.append(len(named["input_ids"]))
        return forward(*arguments, **named)

    encoder.model.forward = counted
    encoder.encode(["a dog", "a cat", "a dog"])
    encoder.encode(["a cat", " A DOG "])
    assert calls == [2]


def test_the_oldest_prompts_leave_the_cache(encoder, monkeypatch):
    from imagen_nodes.imagen_core.text import encoder as module

    states = encoder.encode(["a dog"]).embeds
    monkeypatch.setattr(module, "CACHE_BYTES", 3 * states.nbytes - 1)
    for prompt in ("a dog", "a cat", "a pear"):
        encoder.encode([prompt])
    numbers = [tuple(encoder.tokenizer.encode(prompt)) for prompt in ("a cat", "a pear")]
    assert list(encoder.cache) == numbers


def test_small_prompts_leave_the_cache_too(encoder):
    """Thousands of small blocks that stay hold up, among them, several times their size of freed memory."""
    words = itertools.product(("a", "dog", "cat", "pear"), repeat=5)
    prompts = [" ".join(each) for each in itertools.islice(words, 320)]
    for first in range(0, 320, 16):
        encoder.encode(prompts[first : first + 16])
    assert list(encoder.cache) == [tuple(encoder.tokenizer.encode(p)) for p in prompts[-256:]]


def test_an_encoding_of_more_prompts_than_the_cache_holds_is_whole(encoder, monkeypatch):
    from imagen_nodes.imagen_core.text import encoder as module

    monkeypatch.setattr(module, "CACHE_BYTES", 1)
    assert len(encoder.encode(["a dog", "a cat", "a pear"])) == 3


def test_what_stays_in_the_cache_keeps_no_other_prompt_of_its_batch(encoder):
    encoder.encode([f"prompt {i}" for i in range(40)])
    for embeds, mask in encoder.cache.values():
        assert embeds.untyped_storage().nbytes() == embeds.nbytes
        assert mask.untyped_storage().nbytes() == mask.nbytes


def test_no_prompt_and_half_an_emoji_are_told_and_read(encoder):
    with pytest.raises(ValueError, match="prompts: expected at least one, got none"):
        encoder.encode([])
    half = encoder.encode(["a \ud83d cat"])
    assert torch.equal(half.embeds, encoder.encode(["a ? cat"]).embeds)


def test_case_and_outer_blanks_do_not_matter(encoder):
    assert torch.equal(encoder.encode([" Red Apple "]).embeds, encoder.encode(["red apple"]).embeds)


def test_a_long_prompt_is_cut_with_a_warning_that_says_where(encoder):
    words = "a red dog sat on the hill of blue pear"
    with pytest.warns(
        UserWarning, match=r"11 tokens, the encoder takes 8.*'a red dog sat on the hill'"
    ):
        cut = encoder.encode([words])
    assert torch.equal(cut.embeds, encoder.encode(["a red dog sat on the hill"]).embeds)


def test_null_text_is_the_empty_or_the_negative_prompt(encoder):
    plain = encoder.encode_prompt(["a dog", "a cat"])
    assert torch.equal(plain.null_text.embeds, encoder.encode([""]).embeds)
    assert plain.text.embeds.shape == (2, 8, 16)
    negative = encoder.encode_prompt("a dog", "a cat")
    assert torch.equal(negative.null_text.embeds, plain.text.embeds[1:])


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="expected a file of weights .* found nothing"):
        load_text_encoder(tmp_path)


def test_rows_expand_and_join():
    one = TextEmbedding(torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))
    assert one.expand(5).embeds.shape == (5, 3, 4)
    assert len(TextEmbedding.cat([one, one])) == 2
    with pytest.raises(ValueError, match="2 prompts do not fit 3 images"):
        TextEmbedding.cat([one, one]).expand(3)


GOLDEN = [
    [0.0471, 0.0097, 0.0016, 0.546],
    [0.0211, 0.0161, 0.0286, -0.0615],
    [-0.0455, -0.0292, 0.0241, 0.2791],
]


def test_threads_share_the_cache(encoder, monkeypatch):
    """A prompt that one thread has found in it may be dropped by another before it is fetched."""
    kept = 2 * encoder.encode(["red"]).embeds.nbytes
    monkeypatch.setattr("imagen_nodes.imagen_core.text.encoder.CACHE_BYTES", kept)
    expected = {
        prompt: encoder.encode([prompt]).embeds for prompt in ("red", "green", "blue", "a cat")
    }
    faults = []

    def work(seed):
        draw = random.Random(seed)
        for _ in range(150):
            prompts = draw.choices(list(expected), k=3)
            try:
                found = encoder.encode(prompts).embeds
                assert torch.allclose(found, torch.cat([expected[p] for p in prompts]), atol=1e-5)
            except Exception as error:
                faults.append(repr(error))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert faults == []
    assert len(encoder.cache) == 2


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 20), (4, 2), (33, 64)])
def test_positions_share_buckets_as_in_transformers(buckets, farthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    place = torch.arange(150)
    expected = T5Attention._relative_position_bucket(
        place[None, :] - place[:, None], True, buckets, farthest
    )
    assert torch.equal(position_buckets(150, buckets, farthest), expected)
