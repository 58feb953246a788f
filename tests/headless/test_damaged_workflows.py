"""Workflow files with damaged or hostile parts: the rest is read, or one short error says what is wrong."""

import json
import random
import time

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagen_nodes.cli.info import describe
from imagen_nodes.cli.main import main
from imagen_nodes.cli.node_classes import default_registry
from imagen_nodes.headless.engine.execute import execute
from imagen_nodes.headless.engine.validate import check, validate
from imagen_nodes.headless.formats.queueing import Moment
from imagen_nodes.headless.formats.ui_layout import depths
from imagen_nodes.headless.formats.ui_read import convert
from imagen_nodes.headless.formats.workflow import load_workflow, parse_api, read_workflow
from imagen_nodes.headless.graph import Link, Node, WorkflowError, to_api
from imagen_nodes.headless.object_info import registry_of

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


# --- UI format -------------------------------------------------------------------------------------

REGISTRY = default_registry()
ID = "11111111-2222-3333-4444-555555555555"
READER = {
    "id": 1,
    "type": "LoadImage",
    "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
    "widgets_values": ["a.png", "image"],
}
SAVER = {
    "id": 2,
    "type": "SaveImage",
    "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
    "widgets_values": ["x"],
}
LINK = [1, 1, 0, 2, 0, "IMAGE"]


def link(*of):
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(names, of, strict=True))


def api(nodes, links, *subgraphs):
    data = {"nodes": nodes, "links": links, "definitions": {"subgraphs": list(subgraphs)}}
    graph = convert(json.loads(json.dumps(data)), REGISTRY).queued(
        REGISTRY, Moment(random.Random(0))
    )
    return to_api(graph)


@pytest.mark.parametrize(
    "links", [[None, LINK], [LINK, None, None], [None, link(*LINK)], {"1": LINK}]
)
def test_a_link_that_is_null_is_skipped(links):
    assert api([READER, SAVER], links)["2"]["inputs"]["images"] == ["1", 0]


@pytest.mark.parametrize(
    "name", ["properties", "title", "mode", "flags", "outputs", "order", "color"]
)
@pytest.mark.parametrize("value", [None, 3, "x", []])
def test_parts_of_a_node_that_are_null_or_of_another_type_count_as_absent(name, value):
    graph = api([{**READER, name: value}, {**SAVER, name: value}], [LINK])
    assert graph["2"]["inputs"] == {"filename_prefix": "x", "images": ["1", 0]}


@pytest.mark.parametrize("inputs", [None, [], [None], [3], "x"])
def test_a_node_without_slots_is_read(inputs):
    for kind in ("Reroute", "SetNode", "SaveImage"):
        graph = api([SAVER, {"id": 1, "type": kind, "inputs": inputs}], [LINK])
        expected = {"1", "2"} if kind == "SaveImage" else {"2"}
        assert set(graph) == expected
        images = graph["2"]["inputs"].get("images")
        assert images == (["1", 0] if kind == "SaveImage" else None)


@pytest.mark.parametrize("kind", ["PrimitiveNode", "GetNode"])
@pytest.mark.parametrize("values", [None, [], [None], {}, [[1]]])
def test_a_virtual_node_without_values_feeds_nothing(kind, values):
    saver = {**SAVER, "inputs": [{**SAVER["inputs"][0], "name": "filename_prefix"}]}
    graph = api([saver, {"id": 1, "type": kind, "inputs": [], "widgets_values": values}], [LINK])
    fed = values == [[1]] and kind == "PrimitiveNode"
    assert graph["2"]["inputs"]["filename_prefix"] == ({"__value__": [1]} if fed else "x")


@pytest.mark.parametrize(
    "slot", [float("inf"), float("-inf"), float("nan"), 0.5, None, "x", [0], True]
)
@pytest.mark.parametrize("bypassed", [False, True])
def test_a_link_from_no_output_is_named_with_its_node_and_input(slot, bypassed):
    middle = {**SAVER, "id": 3, "mode": 4 if bypassed else 0, "outputs": [{"type": "IMAGE"}]}
    with pytest.raises(WorkflowError) as caught:
        api([READER, middle, SAVER], [[1, 3, slot, 2, 0, "IMAGE"]])
    lines = {problem.line.split(", got")[0] for problem in caught.value.problems}
    expected = "input images: expected a link from an output's number"
    assert f"node 2 (SaveImage), {expected}" in lines


@pytest.mark.parametrize("entry", [3, [1, 2], {"origin_id": 1}, [], "x"])
def test_what_is_no_link_or_node_is_named(entry):
    with pytest.raises(
        WorkflowError, match="workflow: expected a link with an id and two ends, got"
    ):
        api([READER, SAVER], [entry])
    with pytest.raises(WorkflowError, match="workflow: expected a node with an id and a type, got"):
        api([READER, entry], [LINK])


def instance(values, named=None, proxies=None, quarantine=None):
    properties = {"proxyWidgets": proxies, "proxyWidgetErrorQuarantine": quarantine}
    encode = {
        "id": 2,
        "type": "ImagenT5Encode",
        "inputs": [{"name": "prompt", "type": "STRING", "link": 8, "widget": {"name": "prompt"}}],
        "widgets_values": ["a red apple", "", False],
    }
    number = {
        "id": 3,
        "type": "PrimitiveInt",
        "inputs": [{"name": "value", "type": "INT", "link": 9, "widget": {"name": "value"}}],
        "widgets_values": [7, "randomize"],
    }
    slots = [{"name": "text", "type": "STRING"}, {"name": "number", "type": "INT"}]
    links = [link(8, -10, 0, 2, 0, "STRING"), link(9, -10, 1, 3, 0, "INT")]
    sub = {"id": ID, "inputs": slots, "outputs": [], "nodes": [encode, number], "links": links}
    host = {"id": 10, "type": ID, "properties": properties, "widgets_values": values}
    host["widgets_values_named"] = named
    graph = api([host], [], sub)
    return graph["10:2"]["inputs"]["prompt"], graph["10:3"]["inputs"]["value"]


def test_a_null_among_an_instances_values_is_no_value():
    old = [["2", "prompt"], ["3", "value"], ["3", "control_after_generate"]]
    assert instance([None, None, None], proxies=old) == ("a red apple", 7)
    assert instance([None, 9], proxies=[["-1", "text"], ["-1", "number"]]) == ("a red apple", 9)
    assert instance([None, 9]) == ("a red apple", 9)
    assert instance(["x", None]) == ("x", 7)
    assert instance(None, named={"text": None, "number": 5}) == ("a red apple", 5)
    kept = [{"originalEntry": ["-1", "text"], "hostValue": None}]
    assert instance(["x", 9], proxies=[["-1", "text"]], quarantine=kept) == ("a red apple", 7)
    assert instance(["x", 9], proxies=[None, 3, ["-1"]]) == ("a red apple", 7)
    assert instance(["x"], proxies="x", quarantine=[None, 3]) == ("x", 7)


def test_a_null_among_a_nodes_own_values_is_the_default():
    saver = {**SAVER, "widgets_values": [None]}
    assert api([READER, saver], [LINK])["2"]["inputs"]["filename_prefix"] == "ComfyUI"


def scaled(**changes):
    load = {**READER, "id": 4}
    scale = {
        "id": 5,
        "type": "ImageScale",
        "inputs": [{"name": "image", "type": "IMAGE", "link": 61}],
        "outputs": [{"name": "IMAGE", "type": "IMAGE"}],
        "widgets_values": ["bilinear", 32, 32, "disabled"],
    }
    links = [link(60, 4, 0, -20, 0, "IMAGE"), link(61, 4, 0, 5, 0, "IMAGE")]
    links.append(link(62, 5, 0, -20, 0, "IMAGE"))
    output = {"name": "image", "type": "IMAGE", **changes}
    sub = {"id": ID, "inputs": [], "outputs": [output], "nodes": [load, scale], "links": links}
    host = {"id": 1, "type": ID, "outputs": [{"name": "image", "type": "IMAGE"}]}
    return api([host, SAVER], [LINK], sub)["2"]["inputs"].get("images")


def test_a_subgraphs_output_is_fed_by_the_link_that_it_lists():
    assert scaled(linkIds=[62]) == ["1:5", 0]
    assert scaled(linkIds=[99, 62, 60]) == ["1:5", 0]  # 99 is not there any more
    assert scaled(linkIds=[60]) == ["1:4", 0]
    assert scaled(linkIds=[]) is None
    assert scaled() == scaled(linkIds=None) == ["1:4", 0]  # older files list none


def test_a_widget_shows_on_an_instance_only_through_a_link_that_its_input_lists():
    widget = {"name": "filename_prefix", "type": "STRING", "link": 8}
    widget["widget"] = {"name": "filename_prefix"}
    inner = {"id": 2, "type": "SaveImage", "inputs": [widget], "widgets_values": ["own"]}
    links = [link(8, -10, 0, 2, 0, "STRING"), link(9, -10, 1, 2, 0, "STRING")]
    for listed, given in (([8], "first"), ([], "second"), ([9], "second")):
        slots = [
            {"name": "a", "type": "STRING", "linkIds": listed},
            {"name": "b", "type": "STRING", "linkIds": [8]},
        ]
        sub = {"id": ID, "inputs": slots, "outputs": [], "nodes": [inner], "links": links}
        host = {"id": 1, "type": ID, "widgets_values": ["first"]}
        if given == "second":
            assert api([host], [], sub)["1:2"]["inputs"]["filename_prefix"] == "own"
        else:
            assert api([host], [], sub)["1:2"]["inputs"]["filename_prefix"] == "first"


@pytest.mark.parametrize(
    ("kind", "options", "saved", "value"),
    [
        ("FLOAT,INT", {"default": 25, "widgetType": "FLOAT"}, [30], 30),
        ("INT,FLOAT", {"widgetType": "INT", "control_after_generate": True}, [30, "fixed"], 30),
        ("STRING,INT", {"widgetType": "STRING"}, ["x"], "x"),
        ("COMBO,STRING", {"widgetType": "COMBO", "options": ["a", "b"]}, ["b"], "b"),
        ("*", {"widgetType": "BOOLEAN"}, [True], True),
        ("FLOAT,INT", {"widgetType": "FLOAT", "forceInput": True}, [], None),
        ("FLOAT,INT", {}, [], None),
    ],
)
def test_an_input_of_several_types_is_a_widget_where_it_declares_one(kind, options, saved, value):
    inputs = {"frames": ["INT", {}], "rate": [kind, options], "batch": ["INT", {}]}
    registry = registry_of({"N": {"input": {"required": inputs}, "output": []}})
    node = {"id": 1, "type": "N", "widgets_values": [97, *saved, 2]}
    read = convert({"nodes": [node], "links": []}, registry).graph["1"].inputs
    assert read == {"frames": 97, **({"rate": value} if saved else {}), "batch": 2}
    named = convert({"nodes": [{"id": 1, "type": "N"}], "links": []}, registry).graph["1"].inputs
    assert ("rate" in named) == bool(saved)


# --- cost ------------------------------------------------------------------------------------------


def quick(call, seconds=1.0):
    """What a call gives; it takes so much of this process's time at most."""
    started = time.process_time()
    result = call()
    assert time.process_time() - started < seconds
    return result


def nested(depth, width):
    kinds = [f"{i:08x}-0000-0000-0000-000000000000" for i in range(depth)]
    names = [f"in{i}" for i in range(width)]
    definitions = []
    for i in range(depth):
        last = i == depth - 1
        slots = [{"name": name, "type": "FLOAT", "link": 1 + n} for n, name in enumerate(names)]
        if last:
            slots[0] |= {"name": "scale_by", "widget": {"name": "scale_by"}}
        node = {"id": 1, "type": "ImageScaleBy" if last else kinds[i + 1], "inputs": slots}
        links = [link(1 + n, -10, n, 1, n, "FLOAT") for n in range(width)]
        slots = [{"name": name, "type": "FLOAT"} for name in names]
        definitions.append({"id": kinds[i], "inputs": slots, "nodes": [node], "links": links})
    host = {"id": 1, "type": kinds[0], "widgets_values": [2.5]}
    return [host], [], *definitions


@pytest.mark.parametrize(("depth", "width"), [(30, 2), (100, 5)])
def test_nested_subgraphs_cost_what_their_levels_cost(depth, width):
    graph = quick(lambda: api(*nested(depth, width)))
    assert graph[":".join(["1"] * (depth + 1))]["inputs"]["scale_by"] == 2.5
    with pytest.raises(WorkflowError, match="nested more than 100 deep"):
        api(*nested(102, 1))


def test_copies_of_large_subgraphs_are_bounded():
    nodes = [{"id": n, "type": "Note"} for n in range(3000)]
    hosts = [{"id": n, "type": ID} for n in range(1000)]
    with pytest.raises(WorkflowError, match="or 100000 nodes in them"):
        quick(lambda: api(hosts, [], {"id": ID, "nodes": nodes, "links": []}))


@pytest.mark.parametrize("kind", ["Reroute", "bypassed"])
def test_long_chains_of_virtual_nodes_are_followed_once(kind):
    many = 1000
    nodes, links = [READER | {"id": 0}], []
    for n in range(1, many + 1):
        slots = {
            "inputs": [{"name": "", "type": "IMAGE", "link": n}],
            "outputs": [{"type": "IMAGE"}],
        }
        nodes.append({"id": n, "type": "Reroute" if kind == "Reroute" else "X", **slots})
        nodes[-1]["mode"] = 4 if kind == "bypassed" else 0
        links.append([n, n - 1, 0, n, 0, "IMAGE"])
        slots = [{"name": "images", "type": "IMAGE", "link": many + n}]
        nodes.append({"id": many + n, "type": "SaveImage", "inputs": slots})
        links.append([many + n, n, 0, many + n, 0, "IMAGE"])
    graph = quick(lambda: api(nodes, links), 3)
    assert graph[str(2 * many)]["inputs"]["images"] == ["0", 0]
    links[0] = [1, many, 0, 1, 0, "IMAGE"]
    with pytest.raises(WorkflowError) as caught:
        quick(lambda: api(nodes, links), 3)
    assert "input images: its links run in a circle" in str(caught.value)
    assert len(caught.value.problems) == many


@pytest.mark.parametrize("closed", [False, True])
def test_long_chains_are_validated_in_linear_time(closed):
    many = 10_000
    graph = {}
    for n in range(many):
        source = Link(str((n or many) - 1), 0) if n or closed else "no link"
        inputs = {"image": source, "upscale_method": "area", "scale_by": 1.0}
        graph[str(n)] = Node(str(n), "ImageScaleBy", "t", inputs)
    for n in range(0, many, 4):
        graph[f"p{n}"] = Node(f"p{n}", "PreviewImage", "t", {"images": Link(str(n), 0)})
    verdict = quick(lambda: check(graph, REGISTRY), 5)
    assert verdict.outputs == []
    assert len(verdict.problems) == 1
    said = verdict.problems[0]
    assert said.type == ("dependency_cycle" if closed else "invalid_input_type")
    assert len(said.line) < 2000
    assert len(said.extra_info.get("nodes", [])) == (many if closed else 0)


def test_long_chains_run_in_linear_time():
    class Number:
        RETURN_TYPES, FUNCTION, OUTPUT_NODE = ("INT",), "go", True

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"value": ("INT", {})}}

        def go(self, value):
            return {"ui": {"value": [value]}, "result": (value + 1,)}

    many = 5000
    graph = {"0": Node("0", "Number", "", {"value": 0})}
    graph |= {
        str(n): Node(str(n), "Number", "", {"value": Link(str(n - 1), 0)}) for n in range(1, many)
    }
    shown = quick(lambda: execute(graph, {"Number": Number}), 6)
    assert [shown[str(n)]["value"] for n in range(many)] == [[n] for n in range(many)]
    columns = quick(lambda: depths(graph))
    assert columns[str(many - 1)] == many - 1


def test_only_what_is_spoilt_is_held_back():
    graph = parse_api({**API, "3": LOAD, "4": {**SAVE, "inputs": {"images": ["1", 0]}}})
    graph["1"].inputs["image"] = graph["3"].inputs["image"] = "not there.png"
    assert check(graph, REGISTRY).outputs == []
    registry = {**REGISTRY, "LoadImage": type("L", (), {"RETURN_TYPES": ("IMAGE",)})}
    registry["LoadImage"].INPUT_TYPES = classmethod(lambda cls: {})
    verdict = check(graph, registry)
    assert verdict.outputs == ["2"]


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
    started = time.monotonic()
    with pytest.raises(WorkflowError) as caught:
        validate(parse_api(graph), default_registry())
    assert len(str(caught.value)) < 120_000
    assert "more problems" in str(caught.value)
    assert time.monotonic() - started < 5
