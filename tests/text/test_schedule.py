"""Prompts that change with the steps, and prompts of several parts."""

import time

import pytest
import torch

from imagen_nodes.imagen_core import load_text_encoder
from imagen_nodes.imagen_core.text.embedding import TextEmbedding
from imagen_nodes.imagen_core.text.schedule import scheduled
from imagen_nodes.imagen_core.text.weighting import chunks_of


@pytest.fixture
def encoder(t5_folder):
    return load_text_encoder(t5_folder)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a red fox", {0: "a red fox"}),
        ("a [red:blue:0.4] fox", {0: "a red fox", 0.4: "a blue fox"}),
        ("a [red:.5]fox", {0: "a fox", 0.5: "a redfox"}),
        ("a [red::0.25]fox", {0: "a redfox", 0.25: "a fox"}),
        ("[a:b:0.6] [c:d:0.2]", {0: "a c", 0.2: "a d", 0.6: "b d"}),
        ("[a [b:c:0.2]:d:0.6]", {0: "a b", 0.2: "a c", 0.6: "d"}),
        ("[a [b:0.3]:0.5]", {0: "", 0.5: "a b"}),
        ("[(a:1.2):(b:1.3):0.5]", {0: "(a:1.2)", 0.5: "(b:1.3)"}),
        ("([a:b:0.4]:1.2)", {0: "(a:1.2)", 0.4: "(b:1.2)"}),
        ("[a:b:0] [c:d:1]", {0: "b c"}),
        ("[a] [a:b] [a:b:c:0.4] [a:0.4", {0: "[a] [a:b] [a:b:c:0.4] [a:0.4"}),
        (r"\[a:0.4\] \(b\)", {0: r"[a:0.4] \(b\)"}),
    ],
)
def test_changes_are_read(prompt, texts):
    assert scheduled(prompt) == list(texts.items())


@pytest.mark.parametrize("prompt", ["[a:b:10]", "[a:-0.5]", "ratio [16:9]"])
def test_a_change_outside_the_steps_is_refused(prompt):
    with pytest.raises(ValueError, match="prompt: expected '.*' to end with a part of the steps"):
        scheduled(prompt)


def test_more_changes_than_anybody_writes_are_refused():
    with pytest.raises(ValueError, match="prompt: expected up to 100 texts"):
        scheduled("".join(f"[a:0.{i:03}]" for i in range(101)))


def test_any_number_of_brackets_takes_linear_time():
    started = time.process_time()
    scheduled("[" * 100_000 + "]" * 100_000)
    scheduled("[a:" * 30_000 + ":0.4]" * 30_000)
    assert time.process_time() - started < 5


def test_break_parts_a_prompt_also_inside_brackets():
    assert chunks_of("a BREAK b") == [[("a", 1)], [("b", 1)]]
    assert chunks_of("(a BREAK b:1.5) c") == [[("a", 1.5)], [("b", 1.5), (" c", 1)]]
    assert chunks_of("BREAK a BREAKS break") == [[("", 1)], [("a BREAKS break", 1)]]


def test_each_stretch_has_the_states_of_its_own_text(encoder):
    text = encoder.encode_prompt("a [red:blue:0.4] dog").text
    red, blue = (encoder.encode([f"a {word} dog"]) for word in ("red", "blue"))
    assert text.starts == [0.4]
    for part, expected in ((0, red), (0.39, red), (0.4, blue), (1, blue)):
        assert text.at(part).equals(expected)


def test_parts_are_encoded_apart_and_joined(encoder):
    found = encoder.encode_prompt("A red dog BREAK [a:the] hill", "blue")
    apart = encoder.encode(["a red dog", "[a:the] hill"])
    assert torch.equal(found.text.embeds[0], apart.embeds.flatten(0, 1))
    assert torch.equal(found.text.mask[0], apart.mask.flatten())
    null = encoder.encode(["blue", ""])
    assert torch.equal(found.null_text.embeds[0], null.embeds.flatten(0, 1))


def test_parts_and_changes_go_together(encoder):
    found = encoder.encode_prompt("a [dog BREAK the hill:cat:0.5]", "[red:0.3]")
    cat = encoder.encode(["a cat", ""])
    assert torch.equal(found.text.at(0.5).embeds[0], cat.embeds.flatten(0, 1))
    assert found.null_text.starts == [0.3]
    assert found.null_text.embeds.shape == found.text.embeds.shape


def test_captions_and_plain_texts_are_read_as_they_are(encoder):
    prompt = "a [red:blue:0.4] dog BREAK hill"
    plain = encoder.encode_prompt(prompt, markup=False).text
    assert plain.equals(encoder.encode([prompt])) and not plain.later
    assert encoder.describe(prompt, markup=False).parts == 1
    cleaned = encoder.encode_prompt(prompt, clean_caption=True).text
    assert cleaned.equals(encoder.encode([prompt], clean_caption=True)) and not cleaned.later


def test_prompts_with_changes_of_their_own_share_a_batch(encoder):
    prompts = ["a [red:blue:0.4] dog", "a dog", "[a:the:0.6] dog"]
    text = encoder.encode_prompt(prompts).text
    assert text.starts == [0.4, 0.6]
    joined = TextEmbedding.cat([encoder.encode_prompt(prompt).text for prompt in prompts])
    assert text.equals(joined)
    for i, prompt in enumerate(prompts):
        alone = encoder.encode_prompt(prompt).text
        for part in (0, 0.4, 0.6):
            assert text.take(slice(i, i + 1)).at(part).equals(alone.at(part))


def test_a_reading_tells_changes_and_parts(encoder):
    reading = encoder.describe("a [(red:1.2):blue:0.4] dog BREAK the hill")
    assert reading.text == "a red dog BREAK the hill" and reading.parts == 2
    assert reading.tokens.count("</s>") == 2
    ((start, later),) = reading.later
    assert (start, later.text) == (0.4, "a blue dog BREAK the hill")
