"""`imagen batch`: every row once, models once, failures recorded, resumed where it stopped."""

import collections
import csv
import io
import json
import shutil
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from imagen_nodes.cli import node_classes
from imagen_nodes.cli.main import main
from imagen_nodes.headless.comfy_nodes import CORE_NODES
from imagen_nodes.headless.jobs import manifest as records_of
from imagen_nodes.headless.jobs import output, workers
from imagen_nodes.headless.jobs import tasks as jobs

WORKFLOW = {
    "1": {"class_type": "Model", "inputs": {}},
    "2": {"class_type": "Draw", "inputs": {"model": ["1", 0], "prompt": "red", "size": 4}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "p"}},
}
COUNTS = {"Model": 0, "Draw": 0, "many": 0}


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
        seed = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1})
        flip = ("BOOLEAN", {"default": False})
        optional = {"seed": seed, "flip": flip, "ratio": ("FLOAT", {}), "mode": (["fast", "good"],)}
        return {
            "required": {"model": ("MODEL",), "prompt": prompt, "size": size},
            "optional": optional,
        }

    def draw(self, model, prompt, size, seed=0, flip=False, ratio=1.0, mode="fast"):
        import numpy as np
        import torch

        COUNTS["Draw"] += 1
        if prompt == "stop":
            raise KeyboardInterrupt
        if prompt == "full":
            raise OSError(28, "No space left on device")
        if prompt == "memory" and COUNTS["Draw"] < 6:
            raise RuntimeError("CUDA out of memory")
        picture = np.asarray(Image.new("RGB", (size, size), prompt), np.float32) / 255
        return (torch.from_numpy(picture)[None],)


def drawn():
    import torch

    return (torch.zeros(1, 4, 4, 3),)


class DrawMany(Draw):
    RUN_MANY = "draw_many"

    def draw_many(self, calls):
        COUNTS["many"] += 1
        return [self.draw(**call) for call in calls]


def draw_together(tmp_path):
    """Let the workflow draw the rows of a group at once."""
    text = (tmp_path / "w.json").read_text().replace('"Draw"', '"DrawMany"')
    (tmp_path / "w.json").write_text(text)


@pytest.fixture
def go(tmp_path, monkeypatch):
    nodes = {**CORE_NODES, "Model": Model, "Draw": Draw, "DrawMany": DrawMany}
    monkeypatch.setattr(node_classes, "default_registry", lambda: nodes)
    (tmp_path / "w.json").write_text(json.dumps(WORKFLOW))

    def go(*lines, more=(), name="p.jsonl"):
        COUNTS.update(Model=0, Draw=0, many=0)
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        if lines:
            (tmp_path / name).write_text("\n".join(texts) + "\n")
        paths = [str(tmp_path / name) for name in (name, "w.json", "out")]
        return main(["batch", paths[0], "--workflow", paths[1], "-o", paths[2], "--json", *more])

    return go


def told(capsys):
    last = capsys.readouterr().out.splitlines()[-1]
    return {k: v for k, v in json.loads(last).items() if isinstance(v, int)}


def records(tmp_path, name="manifest.jsonl"):
    texts = (tmp_path / "out" / name).read_text().splitlines()
    return [json.loads(text) for text in texts]


def pictures(tmp_path):
    """Contents of the pictures by name."""
    found = (tmp_path / "out").rglob("*.png")
    return {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in found}


def test_each_line_is_run_with_the_model_loaded_once(go, tmp_path, capsys):
    lines = [
        {"prompt": "red"},
        "",
        {"Draw.prompt": "blue", "2.size": 2},
        {"id": 7, "prompt": "red"},
    ]
    assert go(*lines) == 0
    assert told(capsys) == {"done": 3, "failed": 0, "skipped": 0, "exit": 0}
    assert COUNTS["Model"] == 1
    keys = [record["key"] for record in records(tmp_path)]
    assert keys[2] == "7"
    files = [record["files"] for record in records(tmp_path)]
    assert files == [[f"{key}/p_00001_.png"] for key in keys]
    picture = Image.open(tmp_path / "out" / files[1][0])
    assert picture.size == (2, 2)
    assert picture.getpixel((0, 0)) == (0, 0, 255)
    inputs = json.loads(picture.info["prompt"])["2"]["inputs"]
    assert (inputs["prompt"], inputs["size"]) == ("blue", 2)


def test_a_failure_is_recorded_and_the_others_run(go, tmp_path, capsys):
    lines = [{"prompt": "red"}, {"prompt": "no colour"}, {"size": 99}, {"prompt": "blue"}]
    assert go(*lines) == 1
    assert told(capsys) == {"done": 2, "failed": 2, "skipped": 0, "exit": 1}
    errors = [record.get("error", "") for record in records(tmp_path)]
    assert "column 'size': node 2 (Draw), input size: expected at most 8, got 99" in errors[0]
    assert "node 2 (Draw): unknown color" in errors[2]
    assert go(*lines) == 1
    assert told(capsys) == {"done": 0, "failed": 2, "skipped": 2, "exit": 1}
    assert COUNTS["Draw"] == 1  # the colour may be known another time, a size of 99 never fits


def test_a_row_that_cannot_work_is_not_tried_for_ever(go, tmp_path, capsys):
    lines = [{"prompt": "red"}, {"prompt": "no colour"}]
    drawn = []
    for _ in range(5):
        assert go(*lines) == 1
        drawn.append(COUNTS["Draw"])
    assert drawn == [2, 1, 1, 0, 0]
    assert [record["attempt"] for record in records(tmp_path)] == [1, 1, 2, 3]
    assert "--retry-failed" in capsys.readouterr().err
    assert go(*lines, more=["--retry-failed"]) == 1
    assert COUNTS["Draw"] == 1


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
    (tmp_path / "out" / json.loads(manifest.read_text().splitlines()[0])["files"][0]).unlink()
    assert go({"prompt": "red"}, {"prompt": "blue"}) == 0
    assert told(capsys) == {"done": 1, "failed": 0, "skipped": 1, "exit": 0}


@pytest.mark.parametrize("together", [False, True])
def test_a_full_disk_stops_the_batch_and_it_goes_on_later(go, tmp_path, capsys, together):
    """The row is not at fault, so that it is not recorded as failed; no further row is sampled in vain."""
    lines = [
        {"prompt": "red"},
        {"prompt": "full"},
        *({"prompt": "blue", "size": n} for n in (1, 2)),
    ]
    if together:
        draw_together(tmp_path)
    assert go(*lines) == 1
    assert "No space left on device; make room" in capsys.readouterr().err
    manifest = tmp_path / "out/manifest.jsonl"
    assert manifest.exists() != together
    assert together or [r["state"] for r in records(tmp_path)] == ["done"]
    assert together or COUNTS["Draw"] == 2
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.endswith(".writing")]
    assert go(*lines[:1], *lines[2:]) == 0
    assert len(pictures(tmp_path)) == 3


def test_all_bad_lines_are_named_before_anything_runs(go, tmp_path, capsys):
    assert go({"prompt": "red"}, "{", [1], {"Nope.x": 1}, {"promt": 1}, {"2.height": 1}) == 2
    said = capsys.readouterr().err
    for message in (
        "line 2: not JSON",
        'line 3: expected {"NODE.INPUT": value}, got [1]',
        "line 4: 0 nodes are called 'Nope'",
        "line 5: column 'promt' sets nothing; expected 'prompt'",
        "line 6: node 2 (Draw) has no input 'height'; it has model, prompt, size, seed, flip",
    ):
        assert message in said
    assert COUNTS == {"Model": 0, "Draw": 0, "many": 0}
    assert not (tmp_path / "out").exists()


def test_each_line_draws_its_own_choices_and_a_dated_workflow_is_resumed(go, tmp_path, capsys):
    slot = lambda name, kind, link: {"name": name, "type": kind, "link": link}  # noqa: E731
    draw = {"inputs": [slot("model", "MODEL", 1)], "widgets_values": ["{red|green|blue|white}", 4]}
    save = {"inputs": [slot("images", "IMAGE", 2)], "widgets_values": ["%date:hhmmss%"]}
    nodes = [{"id": 1, "type": "Model"}, {"id": 2, "type": "Draw", **draw}]
    nodes.append({"id": 3, "type": "SaveImage", **save})
    links = [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "IMAGE"]]
    (tmp_path / "w.json").write_text(json.dumps({"nodes": nodes, "links": links}))
    lines = [{"id": n, "size": 1 + n % 8} for n in range(12)]
    assert go(*lines) == 0
    drawn = {
        Image.open(tmp_path / "out" / file).getpixel((0, 0))
        for record in records(tmp_path)
        for file in record["files"]
    }
    assert len(drawn) > 2
    assert (
        go(*({"id": 20 + n, "Draw.prompt": "{lime|blue}", "size": 1 + n % 8} for n in range(12)))
        == 0
    )
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
    changed = jobs.Job.graph

    def faulty(self, task):
        if task.row.number == 1:
            raise KeyError("what nobody thought of")
        return changed(self, task)

    monkeypatch.setattr(jobs.Job, "graph", faulty)
    assert go({"prompt": "red"}, {"prompt": "blue"}) == 1
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
    picture = Image.open(tmp_path / "out" / records(tmp_path)[0]["files"][0])
    assert picture.size == (3, 3)
    assert picture.getpixel((0, 0)) == (0, 255, 0)
    assert go({"model": 1}) == 2
    said = capsys.readouterr().err
    assert "expected a column that one of the workflow's inputs is called, got 'model'" in said


@pytest.mark.parametrize(
    "line",
    [
        '{"made_of": [1]}',
        '{"made_of": "00", "state": "done", "files": [3], "attempt": 1, "key": "x"}',
        '{"made_of": "00112233445566778899aabbccddeeff", "state": "done", "files": 3, "attempt": 1}',
        '{"packed": 3, "tasks": 4}',
        '{"packed": "a", "tasks": ["x"]}',
        '{"packed": "a"}',
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
        if self.name.startswith("manifest") and self.suffix == ".jsonl" and "a" not in mode:
            read.append(mode)
        return file

    monkeypatch.setattr(Path, "open", watched)
    monkeypatch.setattr(records_of, "write_parquet", lambda out: None)
    assert go(*({"prompt": "red", "size": 1 + n % 8, "id": n} for n in range(12))) == 0
    assert read == ["rb"]
    assert asked["Draw"] <= 4  # to read the workflow, and to run all lines
    assert len(records(tmp_path)) == 13


# --- what is seen before anything runs ------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("seed", "abc", "input seed: expected a whole number, got 'abc'"),
        ("seed", "-1", "input seed: expected at least 0, got -1"),
        ("seed", 3.7, "input seed: expected a whole number, got 3.7"),
        ("seed", True, "input seed: expected a whole number, got True"),
        ("seed", 10**30, "input seed: expected at most 18446744073709551615, got 1"),
        ("seed", 10**4000, "input seed: expected at most 18446744073709551615, got 1"),
        ("2.size", "", "input size: expected a whole number, got ''"),
        ("size", None, "input size: expected a whole number, got None"),
        ("ratio", "nan", "input ratio: expected a number, got 'nan'"),
        ("ratio", "1e999", "input ratio: expected a number, got '1e999'"),
        ("ratio", "much", "input ratio: expected a number, got 'much'"),
        ("mode", "fats", "input mode: expected one of fast, good, got 'fats'"),
        ("flip", "perhaps", "input flip: expected true or false, got 'perhaps'"),
        ("LoadImage.image", "gone.png", "no file 'gone.png' in"),
    ],
)
def test_a_value_that_does_not_fit_is_named_before_anything_runs(
    go, tmp_path, capsys, monkeypatch, column, value, message
):
    """With its line, column, node and input; its row is recorded as failed, and the others are made."""
    said = []
    monkeypatch.setattr(Draw, "draw", lambda self, **_: said.append(records(tmp_path)) or drawn())
    graph = json.loads((tmp_path / "w.json").read_text())
    graph["8"] = {"class_type": "LoadImage", "inputs": {"image": "here.png"}}
    graph["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    (tmp_path / "w.json").write_text(json.dumps(graph))
    (tmp_path / "input").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "input/here.png")
    assert go(*({"prompt": "red", "seed": n} for n in range(40)), {column: value}) == 1
    assert told(capsys) == {"done": 40, "failed": 1, "skipped": 0, "exit": 1}
    (first,) = said[0]
    assert (first["line"], first["state"], first["attempt"]) == (41, "failed", 3)
    assert first["error"].startswith(f"column {column!r}: node ")
    assert message in first["error"]


def test_where_no_row_can_run_nothing_is_begun(go, tmp_path, capsys):
    assert go("prompt,size", "4,red", "2,blue", name="p.csv") == 2
    said = capsys.readouterr().err
    for line, value in ((2, "red"), (3, "blue")):
        assert (
            f"p.csv: line {line}: column 'size': node 2 (Draw), input size: expected a whole number, "
            f"got '{value}'"
        ) in said
    assert not (tmp_path / "out").exists()
    graph = json.loads((tmp_path / "w.json").read_text())
    graph["3"]["inputs"]["images"] = ["7", 0]
    (tmp_path / "w.json").write_text(json.dumps(graph))
    assert go({"prompt": "red"}) == 2
    assert "the workflow: node 3 (SaveImage), input images: is linked to node 7, which is not" in (
        capsys.readouterr().err
    )
    assert COUNTS == {"Model": 0, "Draw": 0, "many": 0}


def test_a_column_of_ids_that_is_not_there_is_an_error(go, capsys):
    assert go({"prompt": "red", "name": "a"}, more=["--id", "nmae"]) == 2
    assert "--id: expected a column of" in capsys.readouterr().err
    assert go({"prompt": "red"}, {"prompt": "red", "name": "a"}, more=["--id", "name"]) == 0


def test_a_node_that_no_output_needs_may_hold_anything(go, tmp_path):
    graph = json.loads((tmp_path / "w.json").read_text())
    graph["4"] = {**graph["2"], "_meta": {"title": "unused"}}
    (tmp_path / "w.json").write_text(json.dumps(graph))
    assert go({"2.prompt": "red", "unused.size": 99}) == 0


@pytest.mark.parametrize(
    ("column", "near"), [("promt", "prompt"), ("Prompt", "prompt"), ("szie", "size"), ("fip", "")]
)
def test_a_column_that_is_nearly_an_input_is_asked_about(go, tmp_path, capsys, column, near):
    lines = [{"seed": 1, column: "red"}, {"seed": 2, column: "blue"}]
    assert go(*lines) == (2 if near else 0)
    said = capsys.readouterr().err
    message = f"line 1: column {column!r} sets nothing; expected {near!r}, which the workflow has, or --carry"
    assert (message in said) == bool(near)
    assert go(*lines, more=["--carry", column]) == 0
    assert [record["values"][column] for record in records(tmp_path)[-2:]] == ["red", "blue"]


def test_columns_that_set_nothing_are_told_once(go, capsys):
    """Of a file of a million rows, too."""
    assert go("Prompt,note", *[f"red,{n}" for n in range(5)], name="p.csv") == 2
    said = capsys.readouterr().err
    assert "line 2: column 'Prompt' sets nothing; expected 'prompt', which the workflow has" in said
    assert said.count("line ") == 1
    assert go("id, prompt", "a, red", name="p.csv") == 2
    assert "column ' prompt' sets nothing; expected 'prompt'" in capsys.readouterr().err
    assert go("red,4", "blue,5", name="p.csv") == 2
    said = capsys.readouterr().err
    assert (
        "line 2: expected a column that one of the workflow's inputs is called, got 'red', '4'"
        in said
    )
    assert "the workflow has prompt, size, seed" in said
    lines = [{"a": n} for n in range(3)] + ["[1]"] + [{"b": 1}, {"b": 2}, {"prompt": "red"}]
    assert go(*lines) == 2
    said = capsys.readouterr().err
    assert [n for n in range(1, 8) if f"line {n}:" in said] == [1, 4, 5]


def test_a_column_to_carry_that_is_not_there_is_an_error(go, capsys):
    assert go({"prompt": "red", "size": 3}, more=["--carry", "sise"]) == 2
    assert "--carry: expected a column of" in capsys.readouterr().err


def test_a_file_without_rows_is_told(go, capsys):
    assert go("prompt,size", name="p.csv") == 0
    assert "there are no rows" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../{key}", "/x/{key}", "a/../../{key}"])
def test_a_template_that_leaves_the_folder_is_refused_before_anything_runs(go, capsys, name):
    assert go({"prompt": "red"}, more=["--name", name]) == 2
    assert "--name: expected names inside the folder of -o, got" in capsys.readouterr().err
    assert COUNTS["Draw"] == 0


def test_an_interrupted_batch_says_how_it_goes_on(go, monkeypatch, capsys):
    def stopped(self, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Draw, "draw", stopped)
    assert go({"prompt": "red"}) == 130
    said = capsys.readouterr().err
    assert "interrupted; nothing half-written was left; the same command makes the rest" in said


def test_a_column_is_carried_though_it_is_an_input(go, tmp_path):
    assert go({"prompt": "red", "size": 99}, more=["--carry", "size"]) == 0
    (record,) = records(tmp_path)
    assert record["values"]["size"] == 99
    assert Image.open(tmp_path / "out" / record["files"][0]).size == (4, 4)


def test_an_empty_seed_is_drawn(go, tmp_path):
    assert go("prompt,seed", "red,5", "red,", "blue,", name="p.csv") == 0
    seeds = [record["seed"] for record in records(tmp_path)]
    assert seeds[0] == 5
    assert len({0, *seeds}) == 4


# --- rows side by side -----------------------------------------------------------------------------


def test_rows_share_the_calls_of_nodes_that_take_many(go, tmp_path, capsys):
    """In groups; a row that fails fails alone, equal calls are made once, and the pictures are the same."""
    lines = [{"prompt": "red", "size": 1 + n % 4, "seed": 0, "label": n} for n in range(10)]
    lines.insert(3, {"prompt": "no colour"})
    lines.insert(5, {"size": 99})
    assert go(*lines) == 1
    alone = pictures(tmp_path)
    shutil.rmtree(tmp_path / "out")
    draw_together(tmp_path)
    capsys.readouterr()
    assert go(*lines, more=["--at-once", "6"]) == 1
    assert told(capsys) == {"done": 10, "failed": 2, "skipped": 0, "exit": 1}
    assert COUNTS["Model"] == 1
    assert COUNTS["many"] == 2
    # Four until one fails in the first group, then its five rows by themselves; in the second each
    # of four sizes, though the first made one: groups do not depend on others.
    assert COUNTS["Draw"] == 4 + 5 + 4
    assert {name: len(data) for name, data in pictures(tmp_path).items()}.keys() == alone.keys()
    for name in alone:
        with (
            Image.open(io.BytesIO(alone[name])) as one,
            Image.open(tmp_path / "out" / name) as other,
        ):
            assert one.tobytes() == other.tobytes()
    errors = [record["error"] for record in records(tmp_path) if "error" in record]
    assert "input size: expected at most 8, got 99" in errors[0]
    assert "unknown color" in errors[1]


def test_groups_depend_on_places_alone_so_that_a_resumed_batch_makes_the_same(go, tmp_path):
    draw_together(tmp_path)
    lines = [{"prompt": "red", "label": n} for n in range(10)]
    assert go(*lines, more=["--at-once", "4"]) == 0
    made = records(tmp_path)
    for first, second, shared in ((5, 9, 0), (5, 6, 1)):
        for place in (first, second):
            (tmp_path / "out" / made[place]["files"][0]).unlink()
        assert go(*lines, more=["--at-once", "4"]) == 0
        again = [record["key"] for record in records(tmp_path)[-2:]]
        assert again == [made[first]["key"], made[second]["key"]]
        assert COUNTS["many"] == shared


# --- where rows come from --------------------------------------------------------------------------

ROWS = [{"prompt": "red", "size": 2, "label": "a, b"}, {"prompt": "blue", "size": 3, "label": "c"}]


def write_rows(path, kind):
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        delimiter = {"csv": ",", "tsv": "\t"}[kind]
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_the_same_rows_of_any_format_make_the_same_pictures(go, tmp_path, kind):
    write_rows(tmp_path / f"p.{kind}", kind)
    assert go(name=f"p.{kind}") == 0
    made = records(tmp_path)
    sizes = [Image.open(tmp_path / "out" / record["files"][0]).size for record in made]
    assert sizes == [(2, 2), (3, 3)]
    assert [record["values"]["label"] for record in made] == ["a, b", "c"]
    assert [record["prompt"] for record in made] == ["red", "blue"]


def test_a_text_is_a_prompt_a_line(go, tmp_path):
    assert go("red", "", "blue", name="p.txt") == 0
    assert [record["prompt"] for record in records(tmp_path)] == ["red", "blue"]


@pytest.mark.parametrize("text", ['{"prompt": "red"}\n{"prompt": "blue"}\n', "red\nblue\n"])
def test_rows_come_from_standard_input(go, tmp_path, monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    arguments = ["batch", "-", "--workflow", str(tmp_path / "w.json"), "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert [record["prompt"] for record in records(tmp_path)] == ["red", "blue"]


def test_a_folder_of_workflows_is_run(go, tmp_path, capsys):
    folder = tmp_path / "many"
    folder.mkdir()
    for n, prompt in enumerate(["red", "blue"]):
        graph = json.loads(json.dumps(WORKFLOW))
        graph["2"]["inputs"]["prompt"] = prompt
        (folder / f"w{n}.json").write_text(json.dumps(graph))
    assert main(["batch", str(folder), "-o", str(tmp_path / "out")]) == 0
    assert sorted(pictures(tmp_path)) == ["w0/p_00001_.png", "w1/p_00001_.png"]
    assert "columns" not in capsys.readouterr().err
    (folder / "broken.json").write_text("{")
    assert main(["batch", str(folder), "-o", str(tmp_path / "out"), "--json"]) == 1
    assert told(capsys) == {"done": 0, "failed": 1, "skipped": 2, "exit": 1}
    assert "not JSON" in records(tmp_path)[2]["error"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "prompt,prompt\nred,blue\n", "expected a first line of column names, each once"),
        ("p.csv", "prompt\nred,4\n", "line 2: expected 1 cells, as there are columns, got 2"),
        (
            "p.csv",
            "prompt;size\nred;4\n",
            "p.csv: expected commas between the columns, got 'prompt;size'",
        ),
        ("p.jsonl", '{"prompt": "red"} {"prompt": "blue"}', "line 1: not JSON: more follows"),
        ("p.parquet", "no parquet", "not a readable parquet file"),
        ("p.dat", "red", "expected a name that ends in .jsonl"),
        ("p.jsonl", '{"id": [1], "prompt": "red"}', "line 1: id: expected text or a whole number"),
        ("p.csv", "prompt,flip\nred,perhaps\n", "flip: expected true or false, got 'perhaps'"),
    ],
)
def test_rows_that_cannot_be_read_are_named(go, tmp_path, capsys, name, text, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    assert go(text.strip(), name=name) != 0
    caught = capsys.readouterr()
    assert message in caught.err
    assert "Traceback" not in caught.err


def test_a_file_in_another_encoding_is_named(go, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("prompt\nred\n", "utf-16")
    assert go(name="p.csv") == 2
    assert "p.csv: expected text in UTF-8, got" in capsys.readouterr().err


def test_empty_cells_leave_an_input_as_it_is_and_switches_are_read(go, tmp_path):
    assert go("prompt,size,flip", "red,,false", "blue,2,true", name="p.csv") == 0
    made = [Image.open(tmp_path / "out" / record["files"][0]) for record in records(tmp_path)]
    assert [picture.size for picture in made] == [(4, 4), (2, 2)]
    flips = [json.loads(picture.info["prompt"])["2"]["inputs"].get("flip") for picture in made]
    assert flips == [None, True] or flips == [False, True]


# --- keys and seeds --------------------------------------------------------------------------------


def test_neither_order_nor_new_rows_change_what_is_made(go, tmp_path, capsys):
    first = [{"prompt": "{red|blue|lime}", "id": name} for name in "abc"]
    first += [{"prompt": "{red|blue|lime}", "size": n} for n in (1, 2, 3)]
    assert go(*first) == 0
    made, seeds = pictures(tmp_path), {r["key"]: r["seed"] for r in records(tmp_path)}
    assert len(set(seeds.values())) == 6
    assert go({"prompt": "white"}, *reversed(first)) == 0
    assert told(capsys)["done"] == 1
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in (".png", ".jsonl"):
            path.unlink()
    assert go(*reversed(first)) == 0
    assert pictures(tmp_path) == made
    assert {r["key"]: r["seed"] for r in records(tmp_path)} == seeds


def test_seeds_are_given_drawn_or_the_workflow_s(go, tmp_path):
    def seeds(*more):
        assert (
            go({"prompt": "red", "seed": 5}, {"prompt": "red"}, {"prompt": "blue"}, more=more) == 0
        )
        return [record["seed"] for record in records(tmp_path)[-3:]]

    graph = json.loads((tmp_path / "w.json").read_text())
    graph["2"]["inputs"]["seed"] = 9
    (tmp_path / "w.json").write_text(json.dumps(graph))
    zero, one, kept = seeds(), seeds("--seed", "1"), seeds("--seed", "keep")
    assert zero[0] == one[0] == kept[0] == 5
    assert kept[1:] == [9, 9]
    assert len({*zero[1:], *one[1:], 9}) == 5


def test_a_row_is_repeated_with_seeds_of_its_own(go, tmp_path, capsys):
    graph = json.loads((tmp_path / "w.json").read_text())
    graph["2"]["inputs"]["seed"] = 9
    (tmp_path / "w.json").write_text(json.dumps(graph))
    assert go({"id": "x", "prompt": "red"}, more=["--repeat", "3"]) == 0
    assert [record["key"] for record in records(tmp_path)] == ["x-1", "x-2", "x-3"]
    assert len({record["seed"] for record in records(tmp_path)}) == 3
    assert go({"id": "x", "prompt": "red"}, more=["--repeat", "5"]) == 0
    assert told(capsys)["done"] == 2


def test_equal_rows_are_made_once_and_one_id_of_two_rows_is_refused(go, tmp_path, capsys):
    assert go({"prompt": "red"}, {"prompt": "red"}) == 0
    caught = capsys.readouterr()
    assert "1 rows repeat earlier ones" in caught.err
    assert len(pictures(tmp_path)) == 1
    assert go({"id": 1, "prompt": "red"}, {"prompt": "red"}, {"id": "1", "prompt": "blue"}) == 2
    said = capsys.readouterr().err
    assert (
        "p.jsonl: lines 1 and 3 have the id '1' but differ; expected an id of its own for each row"
        in said
    )
    assert "--id" in said


def test_ids_are_names_of_files_that_lead_nowhere_else(go, tmp_path):
    ids = ["../up", "a/b", "a_b", "a?b", ".hidden", "x" * 300, "\U0001f34e", "ok.1"]
    assert go(*({"id": each, "prompt": "red"} for each in ids)) == 0
    folders = {
        p.parent.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")
    }
    assert len(folders) == len(ids)
    assert all("/" not in name and not name.startswith(".") for name in folders)
    assert "ok.1" in folders
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "p.jsonl", "w.json"]


def test_a_changed_row_replaces_its_pictures(go, tmp_path):
    """Under its id; no folder holds pictures of two prompts, nor those of a name that is no longer used."""
    assert (
        go({"id": "x", "prompt": "red", "filename_prefix": "old"}, {"id": "y", "prompt": "lime"})
        == 0
    )
    assert go({"id": "x", "prompt": "blue"}, {"id": "y", "prompt": "lime"}) == 0
    assert sorted(pictures(tmp_path)) == ["x/p_00001_.png", "y/p_00001_.png"]
    assert Image.open(tmp_path / "out/x/p_00001_.png").getpixel((0, 0)) == (0, 0, 255)


def test_pictures_without_a_record_are_made_again_over_themselves(go, tmp_path):
    """A batch that was killed between the two leaves no second picture beside the first."""
    assert go({"prompt": "red"}, {"prompt": "blue"}) == 0
    before = pictures(tmp_path)
    (tmp_path / "out/manifest.jsonl").unlink()
    assert go({"prompt": "red"}, {"prompt": "blue"}) == 0
    assert pictures(tmp_path) == before


# --- several processes, little memory ---------------------------------------------------------------


def test_shares_make_each_row_once(go, tmp_path, capsys):
    lines = [{"prompt": "red", "size": 1 + n % 8, "label": n} for n in range(24)]
    for part in (1, 2, 3):
        assert go(*lines, more=["--shard", f"{part}/3"]) == 0
    made = [len(records(tmp_path, f"manifest-{part}-of-3.jsonl")) for part in (1, 2, 3)]
    assert sum(made) == 24
    assert min(made) > 1
    assert len(pictures(tmp_path)) == 24
    capsys.readouterr()
    assert go(*lines) == 0
    assert told(capsys) == {"done": 0, "failed": 0, "skipped": 24, "exit": 0}
    assert go(*lines, more=["--shard", "4/3"]) == 2
    assert "--shard: expected I/N, such as 1/8 to 8/8, got '4/3'" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="shares lock otherwise there")
def test_two_batches_at_once_are_one_clear_error(go, tmp_path, capsys):
    from imagen_nodes.headless.jobs.manifest import Share, locked

    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", Share()):
        assert go({"prompt": "red"}) == 2
        assert "another imagen batch works in this folder" in capsys.readouterr().err
    with locked(tmp_path / "out", Share(1, 2)):
        assert go({"prompt": "red"}) == 2
        assert go({"prompt": "red"}, more=["--shard", "1/2"]) == 2
        assert "another imagen batch works on --shard 1/2" in capsys.readouterr().err
        assert go({"prompt": "red"}, more=["--shard", "1/3"]) == 2
        assert (
            "others work in this folder on shares of 2: expected --shard I/2"
            in capsys.readouterr().err
        )
        assert go({"prompt": "red"}, more=["--shard", "2/2"]) == 0
    assert go({"prompt": "red"}, more=["--shard", "1/3"]) == 0


class ServerThatGoes:
    """Draws a number of rows, then answers no more; or only once it is to draw a word."""

    def __init__(self, lasts=99, poison=""):
        self.lasts, self.poison = lasts, poison

    def upload_inputs(self, graph, folder):
        pass

    def run(self, graph, workflow, out, progress):
        time.sleep(0.01)
        prompt = graph["2"].inputs["prompt"]
        self.lasts -= 1
        if self.lasts < 0 or prompt == self.poison:
            self.lasts = 0
            raise ConnectionError("http://one: no ComfyUI server answers there")
        out.mkdir()
        Image.new("RGB", (4, 4), prompt).save(out / "p.png")
        return [out / "p.png"]


@pytest.fixture
def on_servers(monkeypatch):
    def on_servers(*servers):
        registry = node_classes.default_registry()
        monkeypatch.setattr(workers, "servers_of", lambda urls: (list(servers), registry))
        return ["--comfy", "http://one"]

    return on_servers


def test_what_a_lost_server_had_in_hand_is_made_by_the_others(go, on_servers, tmp_path, capsys):
    lines = [{"id": f"k{n}", "prompt": "red"} for n in range(9)]
    assert go(*lines, more=on_servers(ServerThatGoes(lasts=2), ServerThatGoes())) == 0
    keys = [json.loads(line)["key"] for line in (tmp_path / "out/manifest.jsonl").open()]
    assert sorted(keys) == [line["id"] for line in lines]
    told = capsys.readouterr().err
    assert told.count("no ComfyUI server answers there; the other servers go on") == 1
    assert "9 done, 0 failed" in told


def test_a_row_that_takes_every_server_with_it_comes_last(go, on_servers, tmp_path, capsys):
    lines = [{"id": f"k{n}", "prompt": "blue" if n == 1 else "red"} for n in range(9)]
    more = on_servers(ServerThatGoes(poison="blue"), ServerThatGoes(poison="blue"))
    assert go(*lines, more=more) == 1
    assert "http://one: no ComfyUI server answers there" in capsys.readouterr().err
    keys = {json.loads(line)["key"] for line in (tmp_path / "out/manifest.jsonl").open()}
    assert keys == {line["id"] for line in lines} - {"k1"}
    assert go(more=on_servers(ServerThatGoes())) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 1


def test_what_was_short_of_memory_is_tried_again_at_the_end(go, tmp_path, capsys):
    assert go({"prompt": "memory"}, *({"prompt": "red", "size": n} for n in (1, 2, 3, 4))) == 1
    said = capsys.readouterr()
    assert "1 were short of memory; they are tried again one by one" in said.err
    assert [r["key"] for r in records(tmp_path) if r["state"] == "failed"]
    states = [record["state"] for record in records(tmp_path)]
    assert states == ["done"] * 4 + ["failed"]
    assert "unknown color specifier: 'memory'" in records(tmp_path)[-1]["error"]


def test_logs_are_quiet_where_there_is_no_terminal(go, capsys):
    assert go(*({"prompt": "red", "label": n} for n in range(40))) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == [
        "columns that set inputs: prompt; columns that are carried along: label",
        "40 to make, 0 done before",
    ]
    assert len(said) == 3
    assert "40 done, 0 failed, 0 done before; 40 images in" in said[2]


# --- where pictures go -----------------------------------------------------------------------------


def test_names_follow_a_template(go, tmp_path, capsys):
    lines = [{"id": f"k{n}", "prompt": "red", "label": "cat/dog"} for n in range(2)]
    assert go(*lines, more=["--name", "{label}/{key:.1}/{key}"]) == 0
    assert sorted(pictures(tmp_path)) == ["cat_dog/k/k0.png", "cat_dog/k/k1.png"]
    assert go(*lines, more=["--name", "{label}"]) == 2
    assert "expected {key} in it" in capsys.readouterr().err
    assert go(*lines, {"id": "z", "prompt": "red"}, more=["--name", "{label}/{key}"]) == 1
    assert "--name: the row has no value for 'label'" in records(tmp_path)[-1]["error"]


def test_an_imagefolder_has_the_metadata_beside_it(go, tmp_path):
    lines = [{"id": f"k{n}", "prompt": "red", "label": n % 2} for n in range(4)]
    more = ["--format", "imagefolder", "--name", "{label}/{key}"]
    assert go(*lines, more=more) == 0
    found = [
        json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()
    ]
    assert [each["file_name"] for each in found] == ["0/k0.png", "1/k1.png", "0/k2.png", "1/k3.png"]
    assert [each["label"] for each in found] == [0, 1, 0, 1]
    assert all((tmp_path / "out" / each["file_name"]).is_file() for each in found)
    assert {each["prompt"] for each in found} == {"red"}


def test_webdataset_archives_hold_each_picture_once_whatever_happens(
    go, tmp_path, monkeypatch, capsys
):
    lines = [{"id": f"k.{n}", "prompt": "red", "label": n} for n in range(10)]
    more = ["--format", "webdataset", "--shard-size", "4", "--at-once", "3"]
    removed = output.Output._remove_loose

    def killed(self, loose):
        raise KeyboardInterrupt

    monkeypatch.setattr(output.Output, "_remove_loose", killed)  # after an archive was recorded
    assert go(*lines, more=more) == 130
    monkeypatch.setattr(output.Output, "_remove_loose", removed)
    assert go(*lines, more=more) == 0
    capsys.readouterr()
    assert go(*lines, more=more) == 0
    assert told(capsys) == {"done": 0, "failed": 0, "skipped": 10, "exit": 0}
    names, told_of = [], []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                names.append(member.name)
                if member.name.endswith(".json"):
                    told_of.append(json.load(archive.extractfile(member))["key"])
    assert sorted(told_of) == sorted(f"k.{n}" for n in range(10))
    assert len(names) == 30
    assert all(name.count(".") == 1 for name in names)
    assert pictures(tmp_path) == {}
