"""Every node and input has its texts, in English as declared and in Chinese."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HINT = "run python tools/locales.py, then translate what it added to locales/zh"


def recipe():
    spec = importlib.util.spec_from_file_location("locales", ROOT / "tools" / "locales.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = recipe()
FILES = {"nodeDefs": MADE.node_texts(), "commands": MADE.COMMANDS, "main": MADE.MAIN}


def read(language, name):
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text("utf-8"))


def keys(texts):
    return {
        (key, *rest)
        for key, value in texts.items()
        for rest in (keys(value) if isinstance(value, dict) else [()])
    }


@pytest.mark.parametrize("name", FILES)
def test_english_is_what_the_nodes_declare(name):
    assert read("en", name) == FILES[name], HINT


@pytest.mark.parametrize("name", FILES)
def test_chinese_covers_the_same(name):
    assert keys(read("zh", name)) == keys(FILES[name]), HINT


def untranslated(texts):
    """Where a text has no Chinese in it."""
    return {
        ".".join((key, *rest))
        for key, value in texts.items()
        for rest in ([(r,) for r in untranslated(value)] if isinstance(value, dict) else [()])
        if isinstance(value, dict) or not any("\u4e00" <= letter <= "\u9fff" for letter in value)
    }


def test_chinese_is_chinese():
    """But for words that are the same there."""
    same = {"ImagenStageToModel.outputs.1.name", "ImagenSampleCascade.display_name"}
    assert untranslated(read("zh", "nodeDefs")) == same, HINT


@pytest.mark.parametrize("name", FILES)
def test_chinese_is_punctuated_as_chinese_is(name):
    """Full-width marks beside Chinese, outside code and formulas."""
    text = re.sub(r"`[^`]*`", "", (ROOT / "locales" / "zh" / f"{name}.json").read_text("utf-8"))
    assert re.findall(r"[\u4e00-\u9fff][,;:!?]|[,;:!?] ?[\u4e00-\u9fff]", text) == []


def test_a_new_text_is_added_in_english_and_a_known_one_stays():
    wanted = {"a": {"name": "one"}, "b": "two"}
    assert MADE.completed({"a": {"name": "一"}, "c": "gone"}, wanted) == {
        "a": {"name": "一"}, "b": "two",
    }  # fmt: skip
