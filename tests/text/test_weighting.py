"""Weights in prompts: how brackets are read, and what they do to states (tests/comfy has parity)."""

import time

import pytest
import torch

from imagen_nodes.imagen_core import load_text_encoder
from imagen_nodes.imagen_core.text.weighting import apply_weights, weighted_parts


@pytest.fixture
def encoder(t5_folder):
    return load_text_encoder(t5_folder)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a red fox", [("a red fox", 1)]),
        ("", [("", 1)]),
        ("()", [("", 1)]),
        ("a (red:1.2) fox", [("a ", 1), ("red", 1.2), (" fox", 1)]),
        ("((a) b:0.5)", [("a", 0.5 * 1.1), (" b", 0.5)]),
        ("(a (b: -2 ) c)", [("a ", 1.1), ("b", -2), (" c", 1.1)]),
        (r"\(a\) (b)", [("(a) ", 1), ("b", 1.1)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("(a:b:1.5)", [("a:b", 1.5)]),
        ("(a:1.2 (b))", [("a:1.2 ", 1.1), ("b", 1.1 * 1.1)]),
        ("a) (b:2", [("a) (b:2", 1)]),
        ("(a (b:2)", [("(a ", 1), ("b", 2)]),
        ("(a:nan) (b:inf)", [("a:nan", 1.1), (" ", 1), ("b:inf", 1.1)]),
    ],
)
def test_brackets_are_read(prompt, parts):
    found = weighted_parts(prompt)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts])


def test_a_weight_beyond_all_reason_is_refused():
    with pytest.raises(ValueError, match="prompt: expected weights of -100 to 100, got 1e"):
        weighted_parts("(a:1e9)")
    with pytest.raises(ValueError, match="prompt: expected weights"):
        weighted_parts("(" * 60 + "a" + ")" * 60)


def test_any_number_of_brackets_takes_linear_time():
    started = time.process_time()
    weighted_parts("(" * 100_000)
    weighted_parts("(a:1.1)" * 30_000)
    assert time.process_time() - started < 3


def test_states_lie_on_the_line_from_the_empty_prompt():
    states, empty = torch.randn(2, 4, 8)
    found = apply_weights(states, empty, [1.0, 1.5, 0.0])
    assert torch.equal(found[0], states[0]) and torch.equal(found[3], states[3])
    assert torch.allclose(found[1], empty[1] + 1.5 * (states[1] - empty[1]), atol=1e-6)
    assert torch.equal(found[2], empty[2])


def test_the_weight_acts_on_its_tokens_alone(encoder):
    plain = encoder.encode_prompt("a (red:1) dog").text
    strong = encoder.encode_prompt("a (red:1.4) dog").text
    empty = encoder.encode([""]).embeds[0]
    names = encoder.describe("a (red:1.4) dog").tokens
    moved = (plain.embeds != strong.embeds).any(-1)[0].tolist()
    red = [i for i, name in enumerate(names) if name == "▁red"]
    assert red and [i for i, change in enumerate(moved) if change] == red
    expected = empty[red] + 1.4 * (plain.embeds[0, red] - empty[red])
    assert torch.allclose(strong.embeds[0, red], expected, atol=1e-6)


def test_without_brackets_prompts_and_captions_are_the_same_bits(encoder):
    assert torch.equal(
        encoder.encode_prompt("a red dog").text.embeds, encoder.encode(["a red dog"]).embeds
    )


def test_weights_are_off_where_they_are_not_wanted(encoder):
    text = "a (red:1.4) dog"
    assert torch.equal(
        encoder.encode_prompt(text, markup=False).text.embeds, encoder.encode([text]).embeds
    )
    cleaned = encoder.encode_prompt(text, clean_caption=True)
    assert torch.equal(cleaned.text.embeds, encoder.encode([text], clean_caption=True).embeds)


def test_the_negative_prompt_has_weights_too(encoder):
    plain, strong = (encoder.encode_prompt("a", f"(red:{w})").null_text for w in (1, 1.4))
    assert not torch.equal(plain.embeds, strong.embeds)


def test_a_reading_tells_the_weights_and_what_is_cut(encoder):
    reading = encoder.describe("a (red:1.4) dog sat on the (hill) of blue pear")
    assert reading.text == "a red dog sat on the hill of blue pear"
    assert reading.weights == [("red", 1.4), ("hill", 1.1)]
    assert reading.cut and encoder.describe("a (red:2)", markup=False).weights == []


def test_a_prompt_that_is_no_text_is_named(encoder):
    with pytest.raises(TypeError, match="prompt: expected text, got nan"):
        encoder.encode_prompt(["a dog", float("nan")])
