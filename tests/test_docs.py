"""The documents: what they name is there, and what they show runs."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imagen_nodes.imagen_core import PRESETS, Stage, StageConfig, save_stage

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.md")),
]


def names_in(path):
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_security_names_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text("utf-8"))
    assert len(named) > 12
    for path, name in named:
        assert name in names_in(path), f"{path}::{name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(path):
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]*)?\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target
    if path.name in ("CONTRIBUTING.md", "architecture.md"):
        for target in re.findall(r"`([\w./]+/[\w.]*)`", text):
            assert (ROOT / target).exists(), target


def examples():
    """The Python of docs/python.md, by the heading above it."""
    text = (ROOT / "docs" / "python.md").read_text("utf-8")
    found = {}
    for section in text.split("\n## "):
        title = section.split("\n")[0].lstrip("# ")
        found[title] = re.findall(r"```python\n(.*?)```", section, re.S)
    return found


def run(blocks, names):
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)  # noqa: S102


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with a 2x stage that knows the bundled T5, as the examples expect one."""
    monkeypatch.chdir(tmp_path)
    unet = replace(PRESETS["tiny-sr"], text_dim=256)
    save_stage(Stage(StageConfig("sr", 128, 2, unet)), "sr128.safetensors")
    return tmp_path


def test_the_examples_run_and_give_what_they_say(workplace):
    names = {}
    for title, blocks in examples().items():
        for block in blocks if title != "Export" else []:
            run([block], names)
            for name, said in re.findall(r"^(\w+) = .*# ([\d x]+\d)$", block, re.M):
                assert list(names[name].shape) == [int(n) for n in said.split(" x ")], block
    assert names["images"].shape == (1, 128, 128, 3)
    assert names["image"].shape[0] == 1
    assert names["states"].grad.abs().max() > 0
    assert (workplace / "apple.png").is_file()
    assert (names["trace"].read()[:, 0] >= 1).all()


def test_examples_take_less_than_ten_lines():
    """But for comments and blank lines; what a newcomer does first must not be long."""
    found = examples()
    assert len(found) > 9
    for title, blocks in found.items():
        for block in blocks if title != "Export" else []:
            assert len([line for line in block.split("\n") if line.strip()]) < 10, title


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No complete tensor")
def test_the_exported_network_is_the_network(workplace):
    names = {}
    found = examples()
    run([found["The library in Python"][0], *found["Make an image"], *found["Export"]], names)
    program = torch.export.load("base.pt2").module()
    expected = names["FromStates"](names["cascade"].base.unet)(*names["inputs"])
    torch.testing.assert_close(program(*names["inputs"]), expected)
