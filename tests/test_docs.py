"""The documents: what they name is there, and what they show runs."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch

from imagen_nodes.cli.main import make_parser
from imagen_nodes.imagen_core import Stage
from imagen_nodes.imagen_core.training.recipe import parse_recipe

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

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


def commands(path):
    """The lines of a document's code that call `imagen`, without comments."""
    text = "\n".join(re.findall(r"```\w*\n(.*?)```", path.read_text("utf-8"), re.S))
    lines = [re.sub(r"\s+#.*", "", line) for line in text.replace("\\\n", " ").split("\n")]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("imagen ")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_shell_takes_the_commands_of_the_documents(path):
    for command in commands(path):
        if "COMMAND" not in command:
            make_parser().parse_args(shlex.split(command)[1:])


def test_the_recipes_of_a_cascade_from_scratch_make_stages_that_fit():
    text = (ROOT / "docs" / "your_cascade.md").read_text("utf-8")
    base, sr64 = (tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", text, re.S))
    sr128 = re.search(r"sed '(.*?)'", text)[1].split("; ")
    assert sr128 == ["s/resolution = 64/resolution = 128/", "s/sr64/sr128/"]
    first, second = (parse_recipe(tables, ROOT) for tables in (base, sr64))
    assert Path(first.data.text_encoder).is_dir()
    config = second.stage_config()
    assert config.resolution == first.stage_config().resolution * config.scale
    with torch.device("meta"):
        for each in (first.stage_config(), config):
            Stage(each)
    assert sum(t["run"]["minutes"] for t in (base, sr64, sr64)) < 30


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
    """A folder for what the examples write."""
    monkeypatch.chdir(tmp_path)
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
