"""Choices in prompts and names in file names; what the real frontend makes of them is among the goldens."""

import collections
import json
import random
import time
from datetime import datetime

import pytest

from imagen_nodes.cli.node_classes import default_registry
from imagen_nodes.headless.comfy_nodes import CORE_NODES
from imagen_nodes.headless.formats.queueing import Moment
from imagen_nodes.headless.formats.typed_texts import choose, fill_in, format_date
from imagen_nodes.headless.formats.ui_read import convert
from imagen_nodes.headless.formats.workflow import load_draft, load_workflow
from imagen_nodes.headless.inputs import InputError, set_input

NOW = datetime(2026, 3, 4, 15, 6, 7)


def test_every_choice_is_drawn_about_as_often():
    chance = random.Random(0)
    drawn = collections.Counter(
        choose("a {red|green|{blue|grey}} fox", chance) for _ in range(6000)
    )
    expected = {"red": 2000, "green": 2000, "blue": 1000, "grey": 1000}
    assert drawn.keys() == {f"a {colour} fox" for colour in expected}
    for colour, count in expected.items():
        assert abs(drawn[f"a {colour} fox"] - count) < 5 * count**0.5


@pytest.mark.parametrize(
    ("text", "queued"),
    [
        ("a tail \\", "a tail \\"),
        ("{a|a} // gone {b|c}", "a "),
        ("{a/*|*/|a}", "a"),
        ("}|", "}|"),
        ("", ""),
    ],
)
def test_a_prompt_without_choices_is_the_same_whatever_is_drawn(text, queued):
    assert {choose(text, random.Random(seed)).replace(" a ", "a  ") for seed in range(20)} == {
        queued
    }


@pytest.mark.parametrize(
    ("pattern", "written"),
    [
        ("yyyy-MM-dd", "2026-03-04"),
        ("yy.M.d h:m:s", "26.3.4 15:6:7"),
        ("hhmmss", "150607"),
        ("yyy", "yyy"),
        ("Imagen", "I6agen"),
    ],
)
def test_a_date_in_a_file_name_is_written_as_its_pattern_says(pattern, written):
    assert format_date(pattern, NOW) == written


def saver(prefix):
    return {
        "id": 1,
        "type": "SaveImage",
        "inputs": [{"name": "images", "type": "IMAGE", "link": None}],
        "widgets_values": [prefix],
    }


def test_a_file_name_takes_the_moment_of_queueing():
    data = {"nodes": [saver("x/%date:yyyy-MM-dd_hhmmss%")], "links": []}
    graph = convert(data, CORE_NODES).queued(CORE_NODES, Moment(random.Random(), NOW))
    assert graph["1"].inputs["filename_prefix"] == "x/2026-03-04_150607"


def prompt(text):
    return {
        "id": 1,
        "type": "ImagenT5Encode",
        "inputs": [{"name": "text_encoder", "type": "IMAGEN_TEXT_ENCODER", "link": None}],
        "widgets_values": [text, ""],
    }


def test_a_prompt_seed_draws_the_same_again_and_other_seeds_draw_others(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"nodes": [prompt("{a|b|c|d|e|f|g|h}")], "links": []}))

    def drawn(seed):
        graph, _ = load_workflow(path, default_registry(), seed)
        return graph["1"].inputs["prompt"]

    assert [drawn(seed) for seed in range(20)] == [drawn(seed) for seed in range(20)]
    assert len({drawn(seed) for seed in range(20)}) > 4


def test_what_is_set_counts_as_typed_in_either_format(tmp_path):
    data = {"nodes": [{**prompt("old"), "id": 2}, saver("%ImagenT5Encode.prompt%_%date:yy%")]}
    api = {
        "1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "%date:yy%"}},
        "2": {"class_type": "ImagenT5Encode", "inputs": {"prompt": "{kept|as it is}"}},
    }
    path = tmp_path / "graph.json"
    for form in ({**data, "links": []}, api):
        path.write_text(json.dumps(form))
        draft, _ = load_draft(path, default_registry())
        if form is api:
            graph = draft.queued(default_registry(), Moment(random.Random(0), NOW))
            assert graph["2"].inputs["prompt"] == "{kept|as it is}"
            assert graph["1"].inputs["filename_prefix"] == "%date:yy%"
            set_input(draft, "1.filename_prefix=%ImagenT5Encode.prompt%_%date:yy%")
        set_input(draft, "2.prompt={fox|fox} // why")
        graph = draft.queued(default_registry(), Moment(random.Random(0), NOW))
        assert graph["2"].inputs["prompt"] == "fox "
        assert graph["1"].inputs["filename_prefix"] == "{fox_fox} __ why_26"


def test_the_api_format_keeps_its_braces(tmp_path):
    path = tmp_path / "graph.json"
    inputs = {"prompt": "a {b|c} // d", "negative_prompt": ""}
    path.write_text(json.dumps({"1": {"class_type": "ImagenT5Encode", "inputs": inputs}}))
    graph, _ = load_workflow(path, default_registry())
    assert graph["1"].inputs["prompt"] == "a {b|c} // d"


@pytest.mark.parametrize(
    "text",
    [
        "{" * 100_000 + "x",
        "{a|" * 40_000,
        "{" * 30_000 + "\\a" * 30_000 + "}" * 30_000,
        "{" * 30_000 + "\\" * 60_001 + "{",
        "/*" * 60_000,
        "}|" * 60_000,
        "%" * 100_000,
    ],
)
def test_drawing_takes_a_time_that_grows_with_the_length(text):
    started = time.process_time()
    choose(text, random.Random(0))
    fill_in(text, lambda node, name: None, NOW)
    assert time.process_time() - started < 10  # minutes where it grew with the square


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("{{{x", "x"),
        ("{{{x}}}y", "xy"),
        (r"{{\{a}}", "{a"),
        (r"{\\\{a}", r"\{a"),
        (r"{\\}{\{a}", r"\{a"),
        ("a /* b", "a /* b"),
        ("a /*b*/ c /* d", "a  c /* d"),
        ("/*/x*/y", "y"),
        ("a//*b*/c\nd", "a\nd"),
    ],
)
def test_nested_choices_and_comments_are_read_as_the_frontend_reads_them(text, drawn):
    assert choose(text, random.Random(0)) == drawn


def test_set_reaches_inputs_that_the_file_leaves_out(tmp_path):
    inputs = {"text_encoder": ["1", 0], "prompt": "x", "negative_prompt": ""}
    graph = {"2": {"class_type": "ImagenT5Encode", "inputs": inputs}}
    (tmp_path / "w.json").write_text(json.dumps(graph))
    draft, _ = load_draft(tmp_path / "w.json", default_registry())
    set_input(draft, "2.clean_caption=true")
    assert draft.graph["2"].inputs["clean_caption"] is True
    set_input(draft, "2.clean_caption=FALSE")
    assert draft.graph["2"].inputs["clean_caption"] is False
    with pytest.raises(InputError, match="expected true or false, got 'maybe'"):
        set_input(draft, "2.clean_caption=maybe")
    with pytest.raises(InputError, match="has no input 'cleancaption'; it has .*clean_caption"):
        set_input(draft, "2.cleancaption=true")
