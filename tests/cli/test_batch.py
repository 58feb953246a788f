"""`imagen batch`: every line once, models once, failures recorded, resumed where it stopped."""

import collections
import json
import time
from pathlib import Path

import pytest
from PIL import Image

from imagen_nodes.cli import node_classes
from imagen_nodes.cli.main import main
from imagen_nodes.headless.comfy_nodes import CORE_NODES
from imagen_nodes.headless.jobs import batch as jobs

WORKFLOW = {
    "1": {"class_type": "Model", "inputs": {}},
    "2": {"class_type": "Draw", "inputs": {"model": ["1", 0], "prompt": "red", "size": 4}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "p"}},
}
COUNTS = {"Model": 0, "Draw": 0}


class Model:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        COUNTS["Model"] += 1
        return ("a model",)


class Draw(Model):
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls):
        size = ("INT", {"default": 4, "min": 1, "max": 8})
        prompt = ("STRING", {"dynamicPrompts": True})
        return {"required": {"model": ("MODEL",), "prompt": prompt, "size": size}}

    def draw(self, model, prompt, size):
        import numpy as np
        import torch

        COUNTS["Draw"] += 1
        if prompt == "stop":
            raise KeyboardInterrupt
        picture = np.asarray(Image.new("RGB", (size, size), prompt), np.float32) / 255
        return (torch.from_numpy(picture)[None],)


@pytest.fixture
def go(tmp_path, monkeypatch):
    nodes = {**CORE_NODES, "Model": Model, "Draw": Draw}
    monkeypatch.setattr(node_classes, "default_registry", lambda: nodes)
    (tmp_path / "w.json").write_text(json.dumps(WORKFLOW))

    def go(*lines):
        COUNTS.update(Model=0, Draw=0)
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "p.jsonl").write_text("\n".join(texts) + "\n")
        paths = [str(tmp_path / name) for name in ("p.jsonl", "w.json", "out")]
        return main(["batch", paths[0], "--workflow", paths[1], "-o", paths[2], "--json"])

    return go


def told(capsys):
    return {k: v for k, v in json.loads(capsys.readouterr().out).items() if isinstance(v, int)}


def records(tmp_path):
    texts = (tmp_path / "out/manifest.jsonl").read_text().splitlines()
    return [json.loads(text) for text in texts]


def test_each_line_is_run_with_the_model_loaded_once(go, tmp_path, capsys):
    assert go({"prompt": "red"}, "", {"Draw.prompt": "blue", "2.size": 2}, {"prompt": "red"}) == 0
    assert told(capsys) == {"done": 3, "failed": 0, "skipped": 0, "exit": 0}
    assert COUNTS["Model"] == 1
    files = [record["files"] for record in records(tmp_path)]
    assert files == [[f"{n:06}/p_00001_.png"] for n in (1, 3, 4)]
    picture = Image.open(tmp_path / "out/000003/p_00001_.png")
    assert picture.size == (2, 2)
    assert picture.getpixel((0, 0)) == (0, 0, 255)
    inputs = json.loads(picture.info["prompt"])["2"]["inputs"]
    assert (inputs["prompt"], inputs["size"]) == ("blue", 2)


def test_a_failure_is_recorded_and_the_others_run(go, tmp_path, capsys):
    lines = [{"prompt": "red"}, {"prompt": "no colour"}, {"size": 99}, {"prompt": "blue"}]
    assert go(*lines) == 1
    assert told(capsys) == {"done": 2, "failed": 2, "skipped": 0, "exit": 1}
    errors = [record.get("error", "") for record in records(tmp_path)]
    assert "node 2 (Draw): unknown color" in errors[1]
    assert "input size: expected at most 8, got 99" in errors[2]
    assert go(*lines) == 1
    assert told(capsys) == {"done": 0, "failed": 2, "skipped": 2, "exit": 1}


def test_files_of_other_editors_are_read(go, tmp_path, capsys):
    """A byte-order mark, Windows line ends, and a character that ends a line in Unicode alone."""
    (tmp_path / "w.json").write_text((tmp_path / "w.json").read_text(), "utf-8-sig")
    assert (
        go('\ufeff{"prompt": "red"}\r', '{"prompt": "blue", "3.filename_prefix": "a\u2028b"}\r')
        == 0
    )
    assert told(capsys) == {"done": 2, "failed": 0, "skipped": 0, "exit": 0}
    manifest = tmp_path / "out/manifest.jsonl"
    manifest.write_text('3\n{"files": []}\n' + manifest.read_text())
    assert go('{"prompt": "red"}') == 0
    assert told(capsys)["skipped"] == 1


def test_an_interrupted_batch_goes_on_where_it_stopped(go, tmp_path, capsys):
    assert go({"prompt": "red"}, {"prompt": "stop"}) == 130
    manifest = tmp_path / "out/manifest.jsonl"
    manifest.write_text(manifest.read_text() + '{"line": 2, "ke')  # cut off by a crash
    capsys.readouterr()
    assert go({"prompt": "red"}, {"prompt": "blue"}) == 0
    assert told(capsys) == {"done": 1, "failed": 0, "skipped": 1, "exit": 0}
    (tmp_path / "out/000001/p_00001_.png").unlink()
    assert go({"prompt": "red"}, {"prompt": "blue"}) == 0
    assert told(capsys) == {"done": 1, "failed": 0, "skipped": 1, "exit": 0}


def test_a_full_disk_fails_the_line_and_leaves_nothing_half_written(
    go, tmp_path, monkeypatch, capsys
):
    save = Image.Image.save

    def full(self, file, **settings):
        if self.size == (2, 2):
            Path(file).write_bytes(b"half a picture")
            raise OSError(28, "No space left on device")
        save(self, file, **settings)

    monkeypatch.setattr(Image.Image, "save", full)
    assert go({"size": 2}, {"size": 3}) == 1
    assert told(capsys) == {"done": 1, "failed": 1, "skipped": 0, "exit": 1}
    assert "No space left" in records(tmp_path)[0]["error"]
    assert [p.name for p in (tmp_path / "out").rglob("*.png")] == ["p_00001_.png"]
    assert list((tmp_path / "out/000001").iterdir()) == []


def test_all_bad_lines_are_named_before_anything_runs(go, tmp_path, capsys):
    assert go({"prompt": "red"}, "{", [1], {"Nope.x": 1}, {"seed": 1}, {"2.height": 1}) == 2
    said = capsys.readouterr().err
    for message in (
        "line 2: not JSON",
        'line 3: expected {"NODE.INPUT": value}, got [1]',
        "line 4: 0 nodes are called 'Nope'",
        "line 5: expected one node with an input 'seed', got none; write \"NODE.seed\"",
        "line 6: node 2 (Draw) has no input 'height'; it has model, prompt, size",
    ):
        assert message in said
    assert COUNTS == {"Model": 0, "Draw": 0}
    assert not (tmp_path / "out").exists()


def test_each_line_draws_its_own_choices_and_a_dated_workflow_is_resumed(go, tmp_path, capsys):
    slot = lambda name, kind, link: {"name": name, "type": kind, "link": link}  # noqa: E731
    draw = {"inputs": [slot("model", "MODEL", 1)], "widgets_values": ["{red|green|blue|white}", 4]}
    save = {"inputs": [slot("images", "IMAGE", 2)], "widgets_values": ["%date:hhmmss%"]}
    nodes = [{"id": 1, "type": "Model"}, {"id": 2, "type": "Draw", **draw}]
    nodes.append({"id": 3, "type": "SaveImage", **save})
    links = [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "IMAGE"]]
    (tmp_path / "w.json").write_text(json.dumps({"nodes": nodes, "links": links}))
    lines = [{"size": 1 + n % 8} for n in range(12)]
    assert go(*lines) == 0
    drawn = {
        Image.open(tmp_path / "out" / file).getpixel((0, 0))
        for record in records(tmp_path)
        for file in record["files"]
    }
    assert len(drawn) > 2
    assert go(*({"Draw.prompt": "{lime|blue}", "size": 1 + n % 8} for n in range(12))) == 0
    typed = {
        Image.open(tmp_path / "out" / file).getpixel((0, 0))
        for record in records(tmp_path)[12:]
        for file in record["files"]
    }
    assert typed == {(0, 255, 0), (0, 0, 255)}
    capsys.readouterr()
    assert "date" not in records(tmp_path)[0]["files"][0]
    capsys.readouterr()
    time.sleep(1.1)  # other file names from here on
    assert go(*lines) == 0
    assert told(capsys) == {"done": 0, "failed": 0, "skipped": 12, "exit": 0}


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), ["red"], {"a": 1}])
def test_a_prompt_that_is_no_text_fails_its_line(go, tmp_path, capsys, value):
    assert go({"prompt": value}, {"prompt": "red"}) == 1
    assert told(capsys) == {"done": 1, "failed": 1, "skipped": 0, "exit": 1}
    assert COUNTS["Draw"] == 1
    assert "node 2 (Draw), input prompt: expected text, got" in records(tmp_path)[0]["error"]
    text = (tmp_path / "out/manifest.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


@pytest.mark.parametrize("size", [None, float("nan")])
def test_a_number_that_is_none_fails_its_line(go, tmp_path, capsys, size):
    assert go({"size": size}, {"size": 3}) == 1
    assert told(capsys)["done"] == 1
    assert "input size: expected a whole number, got" in records(tmp_path)[0]["error"]


def test_a_line_of_braces_is_drawn_or_fails_and_the_others_run(go, tmp_path, capsys):
    go({"prompt": "red"}, {"prompt": "{" * 100_000}, {"prompt": "{" * 1200 + "blue"}, {"size": 2})
    assert told(capsys) == {"done": 3, "failed": 1, "skipped": 0, "exit": 1}
    assert "unknown color" in records(tmp_path)[1]["error"]


def test_a_fault_of_any_kind_fails_its_line_alone(go, tmp_path, monkeypatch, capsys):
    changed = jobs.changed_graph

    def faulty(draft, line, registry):
        if line.number == 1:
            raise KeyError("what nobody thought of")
        return changed(draft, line, registry)

    monkeypatch.setattr(jobs, "changed_graph", faulty)
    assert go({"prompt": "red"}, {"prompt": "red"}) == 1
    assert told(capsys)["done"] == 1
    assert records(tmp_path)[0]["error"] == "KeyError: 'what nobody thought of'"


def test_a_line_that_is_nested_without_end_is_named(go, capsys):
    assert go("[" * 100_000, {"prompt": "red"}) == 2
    assert "line 1: not JSON" in capsys.readouterr().err


def test_a_line_reaches_inputs_that_the_workflow_leaves_out(go, tmp_path, capsys):
    graph = json.loads((tmp_path / "w.json").read_text())
    del graph["2"]["inputs"]["size"], graph["2"]["inputs"]["prompt"]
    (tmp_path / "w.json").write_text(json.dumps(graph))
    assert go({"prompt": "{lime|lime}", "Draw.size": 3}) == 0
    picture = Image.open(tmp_path / "out/000001/p_00001_.png")
    assert picture.size == (3, 3)
    assert picture.getpixel((0, 0)) == (0, 255, 0)
    assert go({"model": 1}) == 2
    assert "expected one node with an input 'model', got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        '{"key": [1]}',
        '{"key": "x", "files": [3]}',
        '{"key": "x", "files": 3}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_manifest_that_is_damaged_counts_for_nothing(go, tmp_path, capsys, line):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.jsonl").write_bytes(line.encode("latin-1"))
    assert go({"prompt": "red"}) == 0
    assert go({"prompt": "red"}) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["skipped"] == 1


def test_a_batch_reads_its_manifest_once_and_asks_each_class_once(go, tmp_path, monkeypatch):
    assert go({"prompt": "red"}) == 0
    asked, read = collections.Counter(), []
    for cls in (Model, Draw):
        original = cls.INPUT_TYPES.__func__

        def counted(cls, original=original):
            asked[cls.__name__] += 1
            return original(cls)

        monkeypatch.setattr(cls, "INPUT_TYPES", classmethod(counted))
    open_path = Path.open

    def watched(self, mode="r", *more, **named):
        file = open_path(self, mode, *more, **named)
        if self.name == "manifest.jsonl" and "a" not in mode:
            read.append(mode)
        return file

    monkeypatch.setattr(Path, "open", watched)
    assert go(*({"prompt": "red", "size": 1 + n % 8} for n in range(12))) == 0
    assert read == ["r"]
    assert asked["Draw"] <= 4  # to read the workflow, and to run all lines
    assert len(records(tmp_path)) == 13
