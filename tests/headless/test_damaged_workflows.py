"""Workflow files with damaged or hostile parts: the rest is read, or one short error says what is wrong."""

import json
import time

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagen_nodes.cli.info import describe
from imagen_nodes.cli.main import main
from imagen_nodes.cli.node_classes import default_registry
from imagen_nodes.headless.formats.workflow import load_workflow, parse_api, read_workflow
from imagen_nodes.headless.graph import Link, WorkflowError

LOAD = {"class_type": "LoadImage", "inputs": {"image": "a.png"}}
SAVE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
API = {"1": LOAD, "2": SAVE}
UI = {"nodes": [], "links": []}


def png(path, packed=(), **texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text, zip=key in packed)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


# --- pictures that carry a workflow ---------------------------------------------------------------

GOOD, GOOD_UI = json.dumps(API), json.dumps(UI)


@pytest.mark.parametrize(
    ("prompt", "workflow", "ids"),
    [
        *((GOOD, bad, {"1", "2"}) for bad in ("null", "{}", "{bad", "", "[1]", '{"3": {}}')),
        *((bad, GOOD_UI, None) for bad in ("null", "{}", "{bad", "a red apple, 35mm", "{" * 200)),
    ],
)
def test_one_chunk_that_can_be_read_is_enough(tmp_path, prompt, workflow, ids):
    data, ui = read_workflow(png(tmp_path / "p.png", prompt=prompt, workflow=workflow))
    assert (set(data) == ids) if ids else (data == ui == UI)
    assert ui is None or ids is None


def test_where_no_chunk_can_be_read_both_are_named(tmp_path):
    with pytest.raises(WorkflowError) as caught:
        read_workflow(png(tmp_path / "p.png", prompt="{bad", workflow="null"))
    said = str(caught.value)
    assert "p.png, prompt: not JSON" in said
    assert "p.png, workflow: neither" in said
    with pytest.raises(WorkflowError, match=r"p\.png: holds no workflow"):
        read_workflow(png(tmp_path / "p.png", note="x"))


def test_texts_are_read_without_the_pixels(tmp_path):
    path = png(tmp_path / "w.png", ("note", "prompt"), note="x" * 3_000_000, prompt=GOOD)
    data = path.read_bytes()
    start = data.index(b"IDAT") + 4
    path.write_bytes(data[:start] + b"\xff" * 8 + data[start + 8 :])
    assert set(read_workflow(path)[0]) == {"1", "2"}
    path.rename(tmp_path / "picture of a workflow")
    assert set(read_workflow(tmp_path / "picture of a workflow")[0]) == {"1", "2"}


def test_a_text_that_unpacks_to_more_than_a_workflow_is_named(tmp_path):
    path = png(tmp_path / "b.png", ("prompt",), prompt=" " * (65 * 2**20) + GOOD)
    assert path.stat().st_size < 10**6
    with pytest.raises(WorkflowError, match=r"b\.png, prompt: its text is larger than 67108864"):
        read_workflow(path)


def test_a_text_that_is_damaged_is_named(tmp_path):
    path = png(tmp_path / "b.png", ("prompt",), prompt=GOOD)
    data = bytearray(path.read_bytes())
    data[data.index(b"zTXt") + 14] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(WorkflowError, match=r"b\.png, prompt: its compressed text is damaged"):
        read_workflow(path)


# --- API format ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node_id", "entry", "message"),
    [
        ("17", {"inputs": {}}, "node 17: expected a node with a class_type, got {'inputs': {}}"),
        ("extra_data", {}, "node extra_data: expected a node with a class_type"),
        ("17", None, "node 17: expected a node with a class_type, got None"),
        ("17", [1], "node 17: expected a node with a class_type"),
        ("17", {"class_type": None}, "node 17: expected a class_type that is text"),
        ("17", {"class_type": "A", "inputs": None}, "node 17: expected inputs by name"),
    ],
)
def test_an_entry_that_is_no_node_is_named(tmp_path, node_id, entry, message):
    for data in ({**API, node_id: entry}, {"prompt": {node_id: entry, **API}}):
        (tmp_path / "w.json").write_text(json.dumps(data))
        with pytest.raises(WorkflowError) as caught:
            load_workflow(tmp_path / "w.json", default_registry())
        assert f"w.json: {message}" in str(caught.value)
        assert len(caught.value.problems) == 1


@pytest.mark.parametrize("slot", ["Infinity", "-Infinity", "NaN", "0.5", "1e999"])
def test_a_link_whose_slot_is_no_whole_number_is_one_error(tmp_path, capsys, slot):
    text = json.dumps(API).replace('["1", 0]', f'["1", {slot}]')
    (tmp_path / "w.json").write_text(text)
    assert main(["run", str(tmp_path / "w.json"), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    expected = "node 2 (SaveImage), input images: expected a link [node, number of its output], got"
    assert expected in said[0]


def test_a_link_may_spell_its_slot_as_a_float():
    graph = parse_api({"2": {"class_type": "A", "inputs": {"v": ["1", 1.0]}}})
    assert graph["2"].inputs["v"] == Link("1", 1)


# --- what a file is --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["W.JSON", "w.txt", "w", "w.json", "w.workflow"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n  "])
def test_a_workflow_is_known_by_what_it_holds(tmp_path, name, start):
    (tmp_path / name).write_text(start + json.dumps(API), "utf-8")
    assert describe(tmp_path / name)["kind"] == "workflow"


@pytest.mark.parametrize("name", ["X.PNG", "x.png", "x", "x.jpg"])
def test_a_picture_is_known_by_what_it_holds(tmp_path, name):
    png(tmp_path / "made.png", prompt=GOOD).rename(tmp_path / name)
    assert describe(tmp_path / name)["kind"] == "workflow"


@pytest.mark.parametrize("name", ["cascade.json", "config.json"])
@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{", "[" * 100_000])
def test_a_description_that_is_no_object_is_named(tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text)
    assert main(["info", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{name}: " in said
    assert "Traceback" not in said


# --- length of errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["title", "type", "id", "value", "input"])
def test_errors_are_short_whatever_a_file_holds(tmp_path, part):
    long = "x" * 100_000
    graph = {}
    for n in range(110):
        kind = long if part == "type" else "ImageScale"
        inputs = {"crop": long if part == "value" else "no", "upscale_method": [long] * 3}
        inputs = {**inputs, **({long: ["9", 0.5]} if part == "input" else {})}
        title = long if part == "title" else "t"
        key = f"{n}{long}" if part == "id" else str(n)
        graph[key] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
        graph[f"save{n}"] = {"class_type": "PreviewImage", "inputs": {"images": [key, 0]}}
    from imagen_nodes.headless.engine.validate import validate

    started = time.monotonic()
    with pytest.raises(WorkflowError) as caught:
        validate(parse_api(graph), default_registry())
    assert len(str(caught.value)) < 120_000
    assert "more problems" in str(caught.value)
    assert time.monotonic() - started < 5
